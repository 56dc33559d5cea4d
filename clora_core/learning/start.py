"""Where learning starts: a fresh pair of factors per projection, and a word of random vectors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    """All that learning moves: float32 parameters on the base's device.

    vectors: word → text encoder → (layers, words, width). continued: the shared deltas that these started from, as they
    were. allowed: the projector (width, width) onto the directions of the text states that `down` is held within.
    """

    deltas: Mapping[Projection, LowRank]
    vectors: Mapping[str, Mapping[str, Tensor]]
    continued: Mapping[Projection, LowRank] = field(default_factory=dict)
    allowed: Tensor | None = None

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by a name that is the same in every run."""
        named = {
            f"token.{word}.{encoder}": value
            for word, vectors in self.vectors.items()
            for encoder, value in vectors.items()
        }
        for projection, delta in self.deltas.items():
            named |= {f"{projection.path}.up": delta.up, f"{projection.path}.down": delta.down}
        return {name: value for name, value in named.items() if value.requires_grad}

    def token(self, word: str) -> ConceptToken:
        """The word with its vectors as they are now; gradients reach them."""
        return ConceptToken(word, self.vectors[word])

    def kept_token(self, word: str) -> ConceptToken:
        """The word as it is now, on the CPU, copied so that no further step can move it."""
        vectors = self.token(word).vectors
        return ConceptToken(word, {name: value.detach().cpu().clone() for name, value in vectors.items()})

    @torch.no_grad()
    def settle(self) -> None:
        """After an update: put `down` back into the directions that are allowed, if not all are."""
        if self.allowed is not None:
            for delta in self.deltas.values():
                delta.down.copy_(delta.down @ self.allowed)

    def increments(self) -> dict[Projection, LowRank]:
        """What the model has moved since the start, on the CPU, copied so that no further step can move it."""
        increments = {}
        for projection, delta in self.deltas.items():
            parts = [LowRank(delta.up.detach(), delta.down.detach())]
            if projection in self.continued:
                parts.append(self.continued[projection].scaled(-1))
            moved = concatenated(parts)
            increments[projection] = LowRank(moved.up.cpu().clone(), moved.down.cpu().clone())
        return increments


def start(base: Base, concepts: Sequence[Concept], recipe: Recipe, museum: Museum) -> Trained:
    """Deltas that move nothing yet (none for rank 0) and the words' first vectors; the same for the same inputs.

    `up` is zero, so the first step sees the model as it is; `down` is uniform in ±1/√in, as peft and Mix-of-Show start
    it (the paper does not say), unless the recipe says otherwise. A shared delta goes on from where it was left.
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
        deltas[projection] = LowRank(_parameter(up, base), _parameter(down, base, learned=not fixed))

    def first_word(each: Concept) -> dict[str, Tensor]:
        first = start_vectors(base, each, layer_wise=recipe.layer_wise)
        return {encoder: _parameter(value, base) for encoder, value in first.items()}

    trained = Trained(deltas, {each.word: first_word(each) for each in concepts}, continued, allowed)
    trained.settle()
    return trained


def is_known(base: Base, word: str) -> bool:
    """Whether the text encoders have a vector of their own for the word, as for "cat"."""
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
    """The shared delta as the last exhibit of its kind left it: that exhibit's first factors; what follows them in it
    takes the one before away."""
    if recipe.over != "shared":
        return {}
    for exhibit in reversed(museum.exhibits):
        if exhibit.recipe.over == recipe.over and exhibit.deltas:
            rank = exhibit.recipe.rank
            if rank != recipe.rank:
                raise RecipeError(
                    f"The shared delta of this museum, last trained for '{exhibit.word}', has rank {rank}; it cannot "
                    f"go on with rank {recipe.rank}. Choose rank {rank}, or another recipe."
                )
            return {  # copies, since what a museum was loaded as may take part in no backward pass
                projection: LowRank(
                    delta.up[:, :rank].to(base.device, torch.float32, copy=True),
                    delta.down[:rank].to(base.device, torch.float32, copy=True),
                )
                for projection, delta in exhibit.deltas.items()
            }
    return {}


def start_vectors(base: Base, concept: Concept, *, layer_wise: bool = False) -> dict[str, Tensor]:
    """The word's first vectors, (1, words, width) per encoder, or the same for each cross-attention, (layers, …).

    Random by default, as in C-LoRA (arXiv:2304.06027, section 4). The paper does not give the scale; here each
    dimension is normal with the mean and deviation that the encoder's own vocabulary has in it. Raises RecipeError for
    layer-wise words outside of UNets.
    """
    if layer_wise and base.family.reads != "states":
        raise RecipeError(
            f"A word with a vector per cross-attention needs a UNet, not {base.family.title}. Choose another recipe."
        )
    layers = layer_count(base.slots) if layer_wise else 1
    if concept.start:
        known = base.word_vectors(concept.start)
        vectors = {encoder: _fitted(vectors.float(), concept)[None] for encoder, vectors in known.items()}
        return {encoder: value.repeat(layers, 1, 1) for encoder, value in vectors.items()}
    vectors, count = {}, concept.vectors or base.family.numbers.vectors
    for encoder, table in base.vocabulary().items():
        deviation, mean = torch.std_mean(table.float().cpu(), dim=0)
        rng = seeded("token", concept.token_seed, concept.word, encoder)
        vectors[encoder] = (mean + deviation * torch.randn(count, len(mean), generator=rng))[None]
    return {encoder: value.repeat(layers, 1, 1) for encoder, value in vectors.items()}


def _fitted(vectors: Tensor, concept: Concept) -> Tensor:
    """As many vectors as the concept asks for; the last one repeated where the existing word has fewer."""
    if concept.vectors == 0:
        return vectors
    if len(vectors) > concept.vectors:
        raise ConceptError(
            f"'{concept.start}' is {len(vectors)} tokens long, but '{concept.word}' has {concept.vectors} vectors. "
            f"Give it {len(vectors)} vectors, or start from a shorter word."
        )
    return torch.cat([vectors, vectors[-1:].expand(concept.vectors - len(vectors), -1)])


def _parameter(value: Tensor, base: Base, *, learned: bool = True) -> nn.Parameter:
    return nn.Parameter(value.to(base.device, torch.float32), requires_grad=learned)
