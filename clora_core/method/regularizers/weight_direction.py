"""Weight direction: a shared delta keeps its direction while it continues to train.

    L = w · mean over projections of  1 - cos(up·down, up'·down')        up', down': the shared delta before

The weight half of MuseumMaker's dual regularization (arXiv:2404.16612). This is a reconstruction: the paper's formula
was not readable, only that it steers the direction of the shared LoRA's update. The length is free. The cosine of two
products takes rank × rank matrices only.
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
    """The equation above; weight: w. Zero for the first concept and for deltas that are not shared."""

    weight: float = 0.1
    name: ClassVar[str] = "weight_direction"

    def begin(self, setting: Setting) -> Term:
        before = setting.past.shared

        def term(step: Step) -> Tensor:
            turns = [1 - cosine(delta, before[place]) for place, delta in step.deltas.items() if place in before]
            return self.weight * torch.stack(turns).mean() if turns else step.zero()

        return term
