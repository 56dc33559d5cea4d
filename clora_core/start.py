"""Where learning starts: a fresh pair of factors per projection, and a word of random vectors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Base
from .concept import Concept, ConceptToken
from .errors import ConceptError
from .low_rank import LowRank
from .projections import Projection
from .recipe import Recipe
from .seeds import seeded


@dataclass(frozen=True, eq=False)
class Trained:
    """All that learning moves: float32 parameters on the base's device."""

    deltas: Mapping[Projection, LowRank]
    vectors: Mapping[str, Tensor]  # text encoder → (layers, words, width)

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by a name that is the same in every run."""
        named = {f"token.{encoder}": vectors for encoder, vectors in self.vectors.items()}
        for projection, delta in self.deltas.items():
            named |= {f"{projection.path}.up": delta.up, f"{projection.path}.down": delta.down}
        return named

    def token(self, word: str) -> ConceptToken:
        """The word with its vectors as they are now; gradients reach them."""
        return ConceptToken(word, self.vectors)

    def kept(self) -> "Trained":
        """A copy on the CPU that no further step can move."""
        deltas = {
            projection: LowRank(delta.up.detach().cpu().clone(), delta.down.detach().cpu().clone())
            for projection, delta in self.deltas.items()
        }
        return Trained(deltas, {encoder: v.detach().cpu().clone() for encoder, v in self.vectors.items()})


def start(base: Base, concept: Concept, recipe: Recipe) -> Trained:
    """Zero deltas (none for rank 0) and the word's first vectors; the same for the same base, concept and seeds.

    `up` is zero, so the first step sees the model as it is; `down` is uniform in ±1/√in, as peft and Mix-of-Show start
    it (the paper does not say).
    """
    deltas = {}
    for projection in base.modules if recipe.rank else ():
        rows, columns = projection.shape
        rng = seeded("down", recipe.seed, concept.word, projection.path)
        down = (torch.rand(recipe.rank, columns, generator=rng) * 2 - 1) / math.sqrt(columns)
        up = torch.zeros(rows, recipe.rank)
        deltas[projection] = LowRank(_parameter(up, base), _parameter(down, base))
    vectors = start_vectors(base, concept)
    return Trained(deltas, {encoder: _parameter(value, base) for encoder, value in vectors.items()})


def start_vectors(base: Base, concept: Concept) -> dict[str, Tensor]:
    """The word's first vectors, (1, words, width) per encoder.

    Random by default, as in C-LoRA (arXiv:2304.06027, section 4). The paper does not give the scale; here each
    dimension is normal with the mean and deviation that the encoder's own vocabulary has in it.
    """
    if concept.start:
        known = base.word_vectors(concept.start)
        return {encoder: _fitted(vectors.float(), concept).clone()[None] for encoder, vectors in known.items()}
    vectors = {}
    for encoder, table in base.vocabulary().items():
        deviation, mean = torch.std_mean(table.float().cpu(), dim=0)
        rng = seeded("token", concept.token_seed, concept.word, encoder)
        vectors[encoder] = (mean + deviation * torch.randn(concept.vectors, len(mean), generator=rng))[None]
    return vectors


def _fitted(vectors: Tensor, concept: Concept) -> Tensor:
    """As many vectors as the concept asks for; the last one repeated where the existing word has fewer."""
    if len(vectors) > concept.vectors:
        raise ConceptError(
            f"'{concept.start}' is {len(vectors)} tokens long, but '{concept.word}' has {concept.vectors} vectors. "
            f"Give it {len(vectors)} vectors, or start from a shorter word."
        )
    return torch.cat([vectors, vectors[-1:].expand(concept.vectors - len(vectors), -1)])


def _parameter(value: Tensor, base: Base) -> nn.Parameter:
    return nn.Parameter(value.to(base.device, torch.float32))
