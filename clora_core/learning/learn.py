"""Learn one concept: the one training loop, whatever the model and the recipe.

Every draw depends on the recipe's seed and the step's number alone, so the same inputs give the same museum, and a
resumed learning gives what an uninterrupted one would have given.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConceptError, LearningError
from ..method.objective import diffusion_loss
from ..method.recipe import Recipe
from ..method.regularizers import StyleDistillation
from ..method.step import Setting
from ..model.attach import attached
from ..model.base import Base
from ..model.concept import Concept
from ..museum.museum import Exhibit, Museum, gate_of
from .lesson import Lesson
from .optimizer import Optimizer
from .start import Trained, start
from .state import LearningState, NotFiniteError, StateError


@dataclass(frozen=True, eq=False)
class Progress:
    """What a `report` callback is told after every update.

    losses: "diffusion" and each regularizer by name, as they entered the sum. trained: the deltas and the word as they
    are now. snapshot: gives a state that `learn(resume=…)` goes on from.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    trained: Trained
    snapshot: Callable[[], LearningState]

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


def learn(
    base: Base,
    museum: Museum,
    concept: Concept,
    recipe: Recipe,
    *,
    companions: Sequence[Concept] = (),
    report: Callable[[Progress], None] | None = None,
    resume: LearningState | None = None,
) -> Museum:
    """The museum with one more exhibit. Neither the base nor the museum that comes in is changed.

    companions: concepts that are learned at the same time, batches in turn, with deltas that all of them share; their
    exhibits, which hold the words alone, come before. (Joint learning: what learning one after another is measured
    by.) `report` hears of every update and may raise to stop; its exception passes through. Raises LearningError, with
    the last good state in it, when the loss or its gradient is no longer finite, and StateError for a `resume` that is
    no state of this learning.
    """
    together = (*companions, concept)
    check_learnable(base, museum, concept, recipe, companions)
    earlier = Museum(museum.base) if recipe.over == "the base" else museum
    with torch.inference_mode(False), torch.enable_grad():
        words = [each.word for each in together]
        lessons = [Lesson.prepared(base, each, recipe, museum.tokens, words) for each in together]
        trained = start(base, concept, recipe, museum, companions)
        past = {projection: moved.to(base.device) for projection, moved in earlier.dense().items()}
        beneath = past | {place: past[place] - delta.dense() for place, delta in trained.continued.items()}
        with (
            base.learning(precision=recipe.precision, checkpointing=recipe.checkpointing) as computed_in,
            attached(base, beneath),
            attached(base, trained.deltas, gate_of(concept.word, recipe.applied)) as new,
        ):
            optimizer = Optimizer(trained, recipe, base.device, computed_in)
            book = _Book(learning_key(base, museum, concept, recipe, companions), trained, optimizer)
            first_words = [trained.token(word) for word in words]

            @contextmanager
            def as_before() -> Iterator[None]:
                with new.left_out(), attached(base, trained.continued):
                    yield

            setting = Setting(
                base,
                concept,
                past,
                earlier.prompts,
                earlier.tokens,
                as_before,
                lambda: lessons[-1].reference_loss(*first_words),
                [exhibit.scaled_deltas for exhibit in earlier.exhibits if not exhibit.gate],
                trained.continued,
                lessons[-1].latents[0],
                earlier.prompts_beside(concept),
            )
            with as_before():
                terms = {regularizer.name: regularizer.begin(setting) for regularizer in recipe.regularizers}
            if resume is not None:
                book.open_at(resume)
            for index in range(len(book.losses), recipe.steps):
                losses = dict.fromkeys(("diffusion", *terms), 0.0)
                for part in range(recipe.accumulation):
                    turn, place = divmod(index * recipe.accumulation + part, len(lessons))
                    step = lessons[place].step(turn, trained)
                    values = {"diffusion": diffusion_loss(step, base.schedule, min_snr_gamma=recipe.min_snr_gamma)}
                    values |= {name: term(step) for name, term in terms.items()}
                    optimizer.gather(torch.stack(list(values.values())).sum())
                    for name, value in values.items():
                        losses[name] += value.item() / recipe.accumulation
                if not math.isfinite(sum(losses.values())) or not optimizer.update(index):
                    raise NotFiniteError(_not_finite(concept.word, index, losses, computed_in), book.state())
                trained.settle()
                book.losses.append(sum(losses.values()))
                if report:
                    report(Progress(index + 1, recipe.steps, losses, trained, book.state))
        for each in together:
            facts = {"pictures": len(each.pictures), "loss": book.losses[-1]}
            deltas = trained.increments() if each is concept else {}
            exhibit = Exhibit(trained.kept_token(each.word), deltas, recipe, each.kind, each.prompt, facts)
            museum = museum.with_exhibit(exhibit)
    return museum


def check_learnable(
    base: Base, museum: Museum, concept: Concept, recipe: Recipe, companions: Sequence[Concept] = ()
) -> None:
    """Raise for a museum over another base, a word that is taken, and a recipe that concepts cannot share."""
    museum.check_over(base.fingerprint)
    words = [each.word for each in (*companions, concept)]
    for place, word in enumerate(words):
        if word in museum.words:
            raise ConceptError(
                f"The word '{word}' already names exhibit {museum.words.index(word) + 1} of this museum. "
                "Choose another word, or remove that exhibit first."
            )
        if word in words[:place]:
            raise ConceptError(f"Two concepts that are learned together are called '{word}'. Give each its own word.")
    if companions and recipe.applied != "everywhere":
        raise LearningError("Deltas that several concepts share cannot act at the word of one. Choose another recipe.")
    if companions and any(isinstance(regularizer, StyleDistillation) for regularizer in recipe.regularizers):
        raise LearningError("Style distillation knows one style, not several at once. Choose another recipe.")


def learning_key(
    base: Base, museum: Museum, concept: Concept, recipe: Recipe, companions: Sequence[Concept] = ()
) -> str:
    """A fingerprint of everything that decides what is learned: base, museum, concept, pictures and numbers.

    Of the base what its fingerprint knows, and its schedule.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())

    add([museum.base.architecture, museum.base.digest, base.schedule.prediction, recipe.to_json()])
    add(base.schedule.alphas_cumprod)
    for exhibit in museum.exhibits:
        add([exhibit.word, exhibit.kind, exhibit.prompt, exhibit.recipe.to_json()])
        for vectors in exhibit.token.vectors.values():
            add(vectors)
        for projection, delta in exhibit.deltas.items():
            add(projection.path)
            add(delta.scaled(exhibit.strength).up)
            add(delta.down)
    for each in (concept, *companions):
        add([each.word, each.kind, each.prompts(), each.vectors, each.start, each.token_seed])
        if each.captions:
            add(each.prompt)  # which stands in the exhibit, and is what later concepts leave alone
        add(each.pictures)
    return digest.hexdigest()


@dataclass
class _Book:
    """Where a learning stands: what `LearningState` is written from and read into."""

    key: str
    trained: Trained
    optimizer: Optimizer

    def __post_init__(self) -> None:
        self.losses: list[float] = []

    def state(self) -> LearningState:
        tensors = {f"trained.{name}": value.detach().cpu().clone() for name, value in self.trained.parameters().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.memory().items()}
        return LearningState(self.key, len(self.losses), tensors, tuple(self.losses))

    @torch.no_grad()
    def open_at(self, state: LearningState) -> None:
        if state.key != self.key:
            raise StateError("This saved state belongs to another learning (other pictures, museum or numbers).")
        self._check(state)
        for name, value in self.trained.parameters().items():
            value.copy_(state.tensors[f"trained.{name}"])
        prefix = "optimizer."
        memory = {name.removeprefix(prefix): v for name, v in state.tensors.items() if name.startswith(prefix)}
        self.optimizer.remember(memory)
        self.losses = list(state.losses)

    def _check(self, state: LearningState) -> None:
        """Raise StateError unless the state holds all that is trained, and nothing else than this learning knows."""
        trained = {f"trained.{name}": value.shape for name, value in self.trained.parameters().items()}
        shapes = trained | {f"optimizer.{name}": shape for name, shape in self.optimizer.shapes().items()}
        if state.step != len(state.losses):
            raise StateError(f"This saved state is of step {state.step}, but it has {len(state.losses)} losses.")
        if missing := trained.keys() - state.tensors.keys():
            raise StateError(f"This saved state is damaged: it has no '{min(missing)}'.")
        for name, value in state.tensors.items():
            if value.shape != shapes.get(name) or value.dtype != torch.float32 or not value.isfinite().all():
                raise StateError(f"This saved state is damaged: '{name:.100}' is not what this learning has there.")


def _not_finite(word: str, index: int, losses: Mapping[str, float], computed_in: torch.dtype) -> str:
    broken = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
    what = f"the loss ({broken})" if broken else "the gradient"
    exact = "" if computed_in == torch.float32 else "precision fp32 over weights in fp32, or "
    return (
        f"Learning '{word}' stopped at step {index + 1}: {what} is no finite number. Try {exact}a lower learning rate."
    )
