"""Row overlap: a new concept keeps off the directions of the text that earlier deltas read.

    L = λ Σ_projections ‖ past · (up·down)ᵀ ‖²_F        λ = κ · L_ref / Σ_projections ‖past‖⁴_F / in

Ours, after C-LoRA's penalty (arXiv:2304.06027): that one compares entry by entry, and a product of low rank has no
entries that are free, so a new delta can only obey by being small. Here it obeys by reading other directions, since
past·Δᵀ = 0 where no row of Δ lies in the row space of past. Needs rank × rank matrices and one (in, in) per projection.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..step import Setting, Step
from .protocol import Regularizer, Term


def row_overlap(up: Tensor, down: Tensor, rows: Tensor) -> Tensor:
    """‖past·(up·down)ᵀ‖²_F with rows = pastᵀ·past, (in, in). up (out, rank), down (rank, in)."""
    return ((up.T @ up) * (down @ rows @ down.T)).sum()


@dataclass(frozen=True)
class RowOverlap(Regularizer):
    """The equation above with its κ: a delta as large as the past, and unrelated to it, costs κ diffusion losses."""

    weight: float = 1.0
    name: ClassVar[str] = "row_overlap"

    def begin(self, setting: Setting) -> Term:
        past = setting.past.dense if self.weight else {}
        scale = sum(matrix.square().sum().item() ** 2 / matrix.shape[1] for matrix in past.values())
        weight = self.weight * setting.reference_loss / scale if scale else 0.0
        rows = {projection: matrix.T @ matrix for projection, matrix in past.items()}

        def term(step: Step) -> Tensor:
            parts = [row_overlap(d.up, d.down, rows[place]) for place, d in step.deltas.items() if place in rows]
            return weight * torch.stack(parts).sum() if parts else step.latents.new_zeros(())

        return term
