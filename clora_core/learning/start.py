"""The start of learning: new factors for every projection, and random vectors for the word."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import ConceptError, RecipeError
from ..method.recipe import Recipe
from ..model.base import Base
from ..model.concept import Concept, ConceptToken
from ..model.layers import layer_count
from ..model.low_rank import LowRank, concatenated
from ..model.projections import Projection
from ..museum.museum import Museum
from ..seeds import seeded
from .directions import free_directions, quiet_directions


@dataclass(frozen=True, eq=False)
class Trained:
    """Everything that is trained: float32 parameters on the base's device.

    vectors: word → text encoder → (layers, words, width). phrases: frozen word → the words that it stands for.
    continued: the shared deltas that these started from, as they were. allowed: the projector (width, width) onto the
    directions of the text states that `down` is held within.
    """

    deltas: Mapping[Projection, LowRank]
    vectors: Mapping[str, Mapping[str, Tensor]]
    phrases: Mapping[str, str] = field(default_factory=dict)
    continued: Mapping[Projection, LowRank] = field(default_factory=dict)
    allowed: Tensor | None = None

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by a name that is the same in every run."""
        named = {
            f"token.{word}.{encoder}": value
            for word, vectors in self.vectors.items()
            for encoder, value in vectors.items()
        }
        return trainable(named, self.deltas)

    def token(self, word: str) -> ConceptToken:
        """The word with its current vectors; gradients reach them."""
        return ConceptToken(word, self.vectors[word], phrase=self.phrases.get(word, ""))

    def kept_token(self, word: str) -> ConceptToken:
        """A copy of the word with its current vectors, on the CPU."""
        token = self.token(word)
        return replace(token, vectors={name: value.detach().cpu().clone() for name, value in token.vectors.items()})

    @torch.no_grad()
    def settle(self) -> None:
        """After an update: project `down` onto the allowed directions, if the recipe restricts them."""
        if self.allowed is not None:
            for delta in self.deltas.values():
                delta.down.copy_(delta.down @ self.allowed)

    def increments(self) -> dict[Projection, LowRank]:
        """A copy of the change since the start, on the CPU."""
        increments = {}
        for projection, delta in self.deltas.items():
            before = [self.continued[projection].scaled(-1)] if projection in self.continued else []
            increments[projection] = copied(concatenated([delta, *before]))
        return increments


def trainable(named: Mapping[str, Tensor], deltas: Mapping[Projection, LowRank]) -> dict[str, Tensor]:
    """These tensors and the factors of the deltas by name, without those that are fixed."""
    named = dict(named)
    for projection, delta in deltas.items():
        named |= {f"{projection.path}.up": delta.up, f"{projection.path}.down": delta.down}
    return {name: value for name, value in named.items() if value.requires_grad}


def copied(delta: LowRank) -> LowRank:
    """A copy without gradients, on the CPU."""
    return LowRank(delta.up.detach().cpu().clone(), delta.down.detach().cpu().clone())


def parameter(value: Tensor, device: torch.device, *, learned: bool = True) -> nn.Parameter:
    """A float32 parameter of these values."""
    return nn.Parameter(value.to(device, torch.float32), requires_grad=learned)


def start(base: Base, concepts: Sequence[Concept], recipe: Recipe, museum: Museum) -> Trained:
    """Deltas that change nothing yet (none for rank 0) and the words' initial vectors; the same for the same inputs.

    `up` is zero; `down` is uniform in ±1/√in, as in peft and Mix-of-Show (the paper does not say), unless the recipe
    fixes or restricts it. A shared delta continues from the previous exhibit.
    """
    continued = _continued(base, recipe, museum)
    allowed = quiet_directions(base, museum).to(base.device) if recipe.rank and recipe.down == "quiet" else None
    deltas = {}
    for projection in base.slots if recipe.rank else ():
        if projection in continued:
            up, down = continued[projection].up.clone(), continued[projection].down.clone()
        else:
            down = _first_down(recipe, concepts[-1].word, projection, museum)
            up = torch.zeros(projection.shape[0], len(down))
        fixed = recipe.down in ("identity", "orthogonal")
        deltas[projection] = LowRank(parameter(up, base.device), parameter(down, base.device, learned=not fixed))

    vectors = {}
    for concept in concepts:
        first = start_vectors(base, concept, layer_wise=recipe.layer_wise)
        learned = recipe.token == "learned"
        vectors[concept.word] = {
            encoder: parameter(value, base.device, learned=learned) for encoder, value in first.items()
        }
    phrases = {concept.word: concept.start for concept in concepts if recipe.token == "frozen"}
    trained = Trained(deltas, vectors, phrases, continued, allowed)
    trained.settle()
    return trained


def first_token(base: Base, concept: Concept, recipe: Recipe) -> ConceptToken:
    """The word before it is learned, with one layer."""
    frozen = recipe.token == "frozen"
    return ConceptToken(concept.word, start_vectors(base, concept), phrase=concept.start if frozen else "")


def is_known(base: Base, word: str) -> bool:
    """Whether every text encoder has a single token for the word, as for "cat"."""
    try:
        return all(len(vectors) == 1 for vectors in base.word_vectors(word).values())
    except ConceptError:
        return False


def _first_down(recipe: Recipe, word: str, projection: Projection, museum: Museum) -> Tensor:
    """(rank, in) float32; the identity is (in, in)."""
    columns = projection.shape[1]
    if recipe.down == "identity":
        return torch.eye(columns)
    if recipe.down == "orthogonal":
        earlier = [exhibit.deltas[projection].down for exhibit in museum.exhibits if projection in exhibit.deltas]
        return free_directions(earlier, recipe.rank, columns)
    return random_down(recipe, word, projection)


def random_down(recipe: Recipe, name: str, projection: Projection) -> Tensor:
    """(rank, in) float32, uniform in ±1/√in: the same for the same recipe, name and projection."""
    columns = projection.shape[1]
    rng = seeded("down", recipe.seed, name, projection.path)
    return (torch.rand(recipe.rank, columns, generator=rng) * 2 - 1) / math.sqrt(columns)


def _continued(base: Base, recipe: Recipe, museum: Museum) -> dict[Projection, LowRank]:
    """The shared delta after the last exhibit that trained it: the first factors of that exhibit (its other factors
    subtract the shared delta before it)."""
    if recipe.over != "shared":
        return {}
    for exhibit in reversed(museum.exhibits):
        if exhibit.recipe.over == recipe.over and exhibit.deltas:
            rank = exhibit.recipe.rank
            if rank != recipe.rank:
                raise RecipeError(
                    f"The shared delta of this museum, last trained for '{exhibit.word}', has rank {rank}; it cannot "
                    f"continue with rank {recipe.rank}. Choose rank {rank}, or another recipe."
                )
            return {  # copies: tensors of a loaded museum may not support a backward pass
                projection: LowRank(
                    delta.up[:, :rank].to(base.device, torch.float32, copy=True),
                    delta.down[:rank].to(base.device, torch.float32, copy=True),
                )
                for projection, delta in exhibit.deltas.items()
            }
    return {}


def start_vectors(base: Base, concept: Concept, *, layer_wise: bool = False) -> dict[str, Tensor]:
    """The word's initial vectors, (1, words, width) per encoder, or the same for each cross-attention, (layers, …).

    Random by default, as in C-LoRA (arXiv:2304.06027, section 4). The paper does not give the scale; here each
    dimension is normal with the mean and deviation that the encoder's own vocabulary has in it. Raises RecipeError for
    layer-wise words outside of UNets.
    """
    if layer_wise and base.family.reads != "states":
        raise RecipeError(
            f"A word with a vector per cross-attention needs a UNet, not {base.family.title}. Choose another recipe."
        )
    vectors, layers = {}, layer_count(base.slots) if layer_wise else 1
    if concept.start:
        known = base.word_vectors(concept.start)
        most = max(map(len, known.values()))
        for encoder, own in known.items():
            vectors[encoder] = _fitted(own.float(), concept, concept.vectors or most)
    else:
        count = concept.vectors or base.family.numbers.vectors
        for encoder, table in base.vocabulary().items():
            deviation, mean = torch.std_mean(table.float().cpu(), dim=0)
            rng = seeded("token", concept.token_seed, concept.word, encoder)
            vectors[encoder] = mean + deviation * torch.randn(count, len(mean), generator=rng)
    return {encoder: value.repeat(layers, 1, 1) for encoder, value in vectors.items()}


def _fitted(vectors: Tensor, concept: Concept, count: int) -> Tensor:
    """`count` vectors; the last one is repeated if the existing word has fewer."""
    if len(vectors) > count:
        raise ConceptError(
            f"'{concept.start}' is {len(vectors)} tokens long, but '{concept.word}' has {concept.vectors} vectors. "
            f"Give it {len(vectors)} vectors, or start from a shorter word."
        )
    return torch.cat([vectors, vectors[-1:].expand(count - len(vectors), -1)])
