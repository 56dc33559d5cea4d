"""Choose the automatic numbers of a draft by the model's family and the device's memory.

The family decides everything except how an update is computed. If an update does not fit into memory, its pictures are
split into parts, whose gradients are averaged. If that is not enough, checkpointing is turned on, which takes a third
more time. If a step runs out of memory all the same, `lighter` is the next recipe to try.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..method.draft import AUTOMATIC, Draft
from ..method.recipe import GATED, RECIPES, Recipe, shared_by
from ..model.concept import Concept
from ..model.families.family import Family
from ..model.low_rank import compact_values
from ..model.precision import Precision
from ..model.projections import Projection
from ..museum.museum import WHOLE, Museum
from ..texts import counted
from .state import OutOfMemoryError

USABLE = 0.75  # of the device's memory; the rest is for the desktop, decoding pictures, and what the estimate misses


@dataclass(frozen=True)
class Device:
    """total_bytes: the device's memory, used or not. precision: the fastest one that learns well on it."""

    total_bytes: float
    precision: Precision


def fitted(
    draft: Draft,
    family: Family,
    device: Device,
    needed_bytes: Callable[[Recipe], float],
    concepts: Sequence[Concept] = (),
) -> Recipe:
    """The recipe with all numbers, to learn these concepts at once. The same model, museum and device always give
    the same.

    needed_bytes: the memory of a recipe's step, with the models. If nothing fits, the result is what needs the least.
    """
    numbers = family.numbers
    method = RECIPES[GATED] if draft.open and gated_by_default(family, len(concepts)) else draft.recipe
    usual = {
        "rank": numbers.rank if draft.recipe.rank else 0,  # a recipe that trains only the word has no rank
        "steps": numbers.steps_of(word_fit=method.word_fit > 0),
        "learning_rate": numbers.learning_rate,
        "token_learning_rate": numbers.token_learning_rate,
        # other schedules fit the family's own number of steps; constant, a longer learning can resume a shorter one
        "schedule": "constant" if "steps" in draft.chosen or draft.recipe.stop_when_learned else numbers.schedule,
        "precision": numbers.precision or device.precision,
        "token": numbers.token if freezes(draft, concepts) else "learned",
    }
    recipe = dataclasses.replace(
        draft.recipe,
        **{name: getattr(method, name) for name in ("method", "regularizers", "applied", "word_fit")},
        **{name: value for name, value in usual.items() if name not in draft.chosen},
    )
    for choice in _choices(draft, recipe, numbers.batch_size):
        shared = shared_by(choice, max(1, len(concepts)))
        if needed_bytes(shared) <= USABLE * device.total_bytes:
            break
    return shared


def gated_by_default(family: Family, concepts: int = 1) -> bool:
    """Whether a recipe that the user did not choose is word-gated, to learn so many concepts at once.

    It is where text and picture share keys and values. With two streams, which mix them in other ways, it is for one
    concept, since preservation learns too little there (docs/measurements.md); several cannot share gated deltas.
    """
    return family.reads == "shared" or (family.reads == "stream" and concepts < 2)


def freezes(draft: Draft, concepts: Sequence[Concept]) -> bool:
    """Whether a frozen token suits them: there are deltas to train, a few different captions, and no number that is
    chosen for training a word."""
    recipe = draft.recipe
    trained = "token_learning_rate" in draft.chosen or any(concept.vectors for concept in concepts)
    return recipe.rank > 0 and not (trained or recipe.shuffle_tags or recipe.tag_dropout)


def _choices(draft: Draft, recipe: Recipe, pictures: int) -> Iterator[Recipe]:
    """From the fastest to the one that needs the least memory."""
    for checkpointing in (recipe.checkpointing,) if "checkpointing" in draft.chosen else (False, True):
        for batch_size in (recipe.batch_size,) if "batch_size" in draft.chosen else _halves(pictures):
            parts = 1 if "batch_size" in draft.chosen else pictures // batch_size
            yield dataclasses.replace(
                recipe,
                checkpointing=checkpointing,
                batch_size=batch_size,
                accumulation=recipe.accumulation if "accumulation" in draft.chosen else parts,
            )


def _halves(count: int) -> Iterator[int]:
    while count:
        yield count
        count //= 2


def lighter(recipe: Recipe) -> Recipe | None:
    """The next recipe that needs less memory, with as many pictures per update; None if there is none."""
    if not recipe.checkpointing:
        return dataclasses.replace(recipe, checkpointing=True)
    for size in range(recipe.batch_size - 1, 0, -1):
        if recipe.batch_size % size == 0:
            parts = recipe.accumulation * recipe.batch_size // size
            return dataclasses.replace(recipe, batch_size=size, accumulation=parts)
    return None


def lighter_after(error: OutOfMemoryError, draft: Draft, recipe: Recipe) -> Recipe:
    """The lighter recipe to go on with by itself. Raises the error if that would change a number that the user chose,
    or lose finished steps: only checkpointing can change in the middle of a training."""
    less = lighter(recipe)
    if less:
        changed = {name for name in AUTOMATIC if getattr(less, name) != getattr(recipe, name)}
        lossless = changed == {"checkpointing"} or not error.state.step
        if lossless and not changed & draft.chosen:
            return less
    raise error


def memory_advice(recipe: Recipe, computed_in: torch.dtype) -> str:
    """What to change after a step has run out of memory, as sentences."""
    less = lighter(recipe)
    if less and less.checkpointing != recipe.checkpointing:
        return "Turn on checkpointing: training then goes on where it stopped."
    if less:
        change = f"Set batch_size to {less.batch_size} and accumulation to {less.accumulation}"
    else:
        change = "Set precision to bf16" if computed_in == torch.float32 else "Use smaller pictures"
    return f"{change}: training then starts over. With the same settings, it goes on where it stopped."


def computed(recipe: Recipe) -> str:
    """How an update is computed: "bf16, batch 1 ×4, checkpointing"."""
    parts = f" ×{recipe.accumulation}" if recipe.accumulation > 1 else ""
    return f"{recipe.precision}, batch {recipe.batch_size}{parts}{', checkpointing' * recipe.checkpointing}"


def described(recipe: Recipe, family: Family, device: Device) -> str:
    """ "SD1.5 on 8 GB: bf16, batch 1 ×4, checkpointing; rank 16, 400 steps, learning rate 0.0005 (word 0.005)" """
    schedule = "" if recipe.schedule == "constant" else f", {recipe.schedule}"
    rank = f"rank {recipe.rank}, " if recipe.rank else ""
    rates = f"{recipe.learning_rate:g} (word {recipe.token_learning_rate:g}){schedule}"
    where = f" on {device.total_bytes / 2**30:.0f} GB" if math.isfinite(device.total_bytes) else ""
    return f"{family.title}{where}: {computed(recipe)}; {rank}{counted(recipe.steps, 'step')}, learning rate {rates}"


def learning_bytes(
    family: Family,
    projections: Collection[Projection],
    recipe: Recipe,
    earlier: Museum,
    *,
    latent_pixels: int,
    copied_bytes: float,
    read_bytes: int,
) -> int:
    """Approximate memory of a training step, without the models themselves.

    earlier: the museum that is built on. latent_pixels: of one picture. copied_bytes: of the weights that are stored in
    another dtype than the recipe's. read_bytes: of each number that the projections read.
    """
    wide = 2 if recipe.precision == "fp32" else 1
    passes = 1 + sum(regularizer.passes for regularizer in recipe.regularizers if regularizer.weight)
    activations = family.kept_bytes * wide * latent_pixels * recipe.batch_size * passes
    share = family.checkpointed if recipe.checkpointing else 1
    # parameters, gradients and AdamW's two moments
    trained = 16 * sum(_trained_values(recipe, projection) for projection in projections)
    at_work = [regularizer for regularizer in recipe.regularizers if regularizer.weight]
    matrices = 4 * sum(regularizer.matrices for regularizer in at_work) * sum(math.prod(p.shape) for p in projections)
    # the past as the projections add it, and as regularizers read it
    widths = {read_bytes, *(4 for regularizer in at_work if regularizer.reads_past)}
    past = sum(widths) * sum(past_values(projection, earlier) for projection in projections)
    return round((activations + copied_bytes) * share) + trained + matrices + past


def past_values(projection: Projection, earlier: Museum) -> int:
    """How many numbers `Museum.compact` holds for a projection.

    Those that it keeps whole count from the first concept on, so that the recipe does not change with the second.
    """
    if math.prod(projection.shape) <= WHOLE:
        return math.prod(projection.shape)
    ranks = [e.deltas[projection].rank for e in earlier.exhibits if not e.gate and projection in e.deltas]
    return compact_values(projection.shape, sum(ranks))


def copied_bytes(network: nn.Module, itemsize: int, is_copied: Callable[[nn.Module], bool]) -> int:
    """Bytes of the weights that are computed in another dtype: the backward pass keeps a converted copy of each."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return sum(math.prod(module.weight.shape) * itemsize for module in layers if is_copied(module))


def _trained_values(recipe: Recipe, projection: Projection) -> int:
    rows, columns = projection.shape
    rank = columns if recipe.down == "identity" and recipe.rank else recipe.rank
    return rank * (rows + (0 if recipe.down == "identity" else columns))
