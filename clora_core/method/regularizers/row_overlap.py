"""Row overlap: a new concept avoids the directions of the text states that earlier deltas read.

    L = λ Σ_projections ‖ past · (up·down)ᵀ ‖²_F        λ = κ · L_ref / Σ_projections ‖past‖⁴_F / in

Ours, based on C-LoRA's penalty (arXiv:2304.06027). That penalty compares entry by entry, and the entries of a low-rank
product are not independent, so a new delta can only shrink to satisfy it. Here it can read other directions instead:
past·Δᵀ = 0 if the rows of Δ are orthogonal to those of past. It takes rank × rank matrices, and pastᵀ·past of each
projection: (in, in), or a root of it where past is held as its factors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.low_rank import Matrix, Moment, Sketch, mean_square, squared_norm
from ..step import AnySetting, AnyStep
from .protocol import Regularizer, Term


def squared_rows(matrix: Matrix) -> Moment:
    """matrixᵀ·matrix. With up = Q R, that of up·down is (R·down)ᵀ(R·down)."""
    if isinstance(matrix, Tensor):
        return matrix.T @ matrix
    return Sketch((torch.linalg.qr(matrix.up, mode="r").R @ matrix.down).T)


@dataclass(frozen=True)
class RowOverlap(Regularizer):
    """The equation above; weight: κ. A delta as large as the past and unrelated to it costs κ diffusion losses."""

    weight: float = 1.0
    name: ClassVar[str] = "row_overlap"
    concepts_only: ClassVar[bool] = False
    reads_past: ClassVar[bool] = True

    def begin(self, setting: AnySetting) -> Term:
        past = setting.past.total if self.weight else {}
        scale = sum(squared_norm(matrix) ** 2 / matrix.shape[1] for matrix in past.values())
        weight = self.weight * setting.reference_loss / scale if scale else 0.0
        rows = {projection: squared_rows(matrix) for projection, matrix in past.items()}

        def term(step: AnyStep) -> Tensor:
            # ‖past·Δᵀ‖²_F is the mean square of Δ x for x of the second moment pastᵀ·past
            parts = [mean_square(delta, rows[place]) for place, delta in step.deltas.items() if place in rows]
            return weight * torch.stack(parts).sum() if parts else step.zero()

        return term
