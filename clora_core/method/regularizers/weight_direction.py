"""Weight direction: a shared delta that is trained on keeps pointing where it pointed.

    L = w · mean over projections of  1 - cos(up·down, up'·down')        up', down': the shared delta as it was before

MuseumMaker (arXiv:2404.16612), the weight half of its dual regularization; reconstructed, since the paper's formula
could not be read: only that it steers the direction of the shared LoRA's update. The length stays free. The cosine of
two products needs rank × rank matrices only.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.low_rank import LowRank, inner
from ..step import Setting, Step
from .protocol import Regularizer, Term


def cosine(one: LowRank, other: LowRank) -> Tensor:
    """cos(one, other) as vectors of all entries; 0 where either is zero."""
    lengths = inner(one, one).clamp_min(0) * inner(other, other).clamp_min(0)
    return inner(one, other) / lengths.clamp_min(1e-24).sqrt()


@dataclass(frozen=True)
class WeightDirection(Regularizer):
    """The equation above with its weight w. Nothing for the first concept, and for deltas that are not shared."""

    weight: float = 0.1
    name: ClassVar[str] = "weight_direction"

    def begin(self, setting: Setting) -> Term:
        before = setting.past.shared

        def term(step: Step) -> Tensor:
            turned = [1 - cosine(delta, before[place]) for place, delta in step.deltas.items() if place in before]
            return self.weight * torch.stack(turned).mean() if turned else step.latents.new_zeros(())

        return term
