"""Row overlap: a new concept avoids the directions of the text states that earlier deltas read.

    L = λ Σ_projections ‖ past · (up·down)ᵀ ‖²_F        λ = κ · L_ref / Σ_projections ‖past‖⁴_F / in

Ours, based on C-LoRA's penalty (arXiv:2304.06027). That penalty compares entry by entry, and the entries of a low-rank
product are not independent, so a new delta can only shrink to satisfy it. Here it can read other directions instead:
past·Δᵀ = 0 if the rows of Δ are orthogonal to those of past. It takes rank × rank matrices, and one (in, in) per
projection.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.low_rank import mean_square
from ..step import AnySetting, AnyStep
from .protocol import Regularizer, Term


@dataclass(frozen=True)
class RowOverlap(Regularizer):
    """The equation above; weight: κ. A delta as large as the past and unrelated to it costs κ diffusion losses."""

    weight: float = 1.0
    name: ClassVar[str] = "row_overlap"
    concepts_only: ClassVar[bool] = False

    def begin(self, setting: AnySetting) -> Term:
        past = setting.past.dense if self.weight else {}
        scale = sum(matrix.square().sum().item() ** 2 / matrix.shape[1] for matrix in past.values())
        weight = self.weight * setting.reference_loss / scale if scale else 0.0
        rows = {projection: matrix.T @ matrix for projection, matrix in past.items()}

        def term(step: AnyStep) -> Tensor:
            # ‖past·Δᵀ‖²_F is the mean square of Δ x for x of the second moment pastᵀ·past
            parts = [mean_square(delta, rows[place]) for place, delta in step.deltas.items() if place in rows]
            return weight * torch.stack(parts).sum() if parts else step.zero()

        return term
