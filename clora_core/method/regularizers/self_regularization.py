"""Self-regularization: a new concept avoids the weights that earlier concepts changed.

    L = λ Σ_projections ‖ past ∘ (up·down) ‖²_F        Smith et al. 2023 (C-LoRA), arXiv:2304.06027, equation (3)

The paper takes the absolute value of past, which makes no difference under the square. Its λ (1e8 as far as we know)
depends on the model, rank and learning rate: the term grows with the fourth power of the deltas. The relative weight κ
is ours:

    λ = κ · L_ref / Σ_projections numel · rms(past)⁴

so that with κ = 1, a delta as large as the past and unrelated to it costs as much as the diffusion loss L_ref. So λ is
computed anew for each concept, from its past and its pictures, where the paper has one λ for the whole sequence. With
the second concept's λ for all, the result was the same within noise (benchmarks/fixed_lambda.py).

`squares` uses (Σ Δ_i²)^½ instead of past = Σ Δ_i, so that earlier deltas of opposite signs do not cancel, which would
leave their weights unprotected. Ours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...model.low_rank import LowRank, Matrix, squared_norm
from ...model.projections import Projection
from ..step import AnySetting, AnyStep, Deltas
from .protocol import Regularizer, Term

Weights = Tensor | Sequence[LowRank]  # one projection's past, (out, in): whole, or (Σ Δ_i²)^½ of these
BLOCK = 2**22  # values of a block of rows


class LowRankOverlap(torch.autograd.Function):
    """‖past ∘ (up·down)‖²_F of one projection, without dense matrices in the backward pass.

    The gradient flows to up and down only. With G = 2 past² ∘ (up·down), ∂/∂up = G·downᵀ and ∂/∂down = upᵀ·G: only
    these two thin matrices are kept, so all projections together need no more dense memory than one block of rows, or
    the largest past that is whole. Inputs are float32.
    """

    @staticmethod
    def forward(ctx: Any, past: Weights, up: Tensor, down: Tensor) -> Tensor:
        for_up, for_down, squares = [], [], []
        for rows, block in blocks(past):
            product = block * (up[rows] @ down)
            gradient = block * product * 2
            for_up.append(gradient @ down.T)
            for_down.append(up[rows].T @ gradient)
            squares.append(product.square().sum())
        ctx.save_for_backward(torch.cat(for_up), sum(for_down[1:], start=for_down[0]))
        return sum(squares[1:], start=squares[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, Tensor]:
        for_up, for_down = ctx.saved_tensors
        return None, upstream[0] * for_up, upstream[0] * for_down


def blocks(past: Weights) -> Iterator[tuple[slice, Tensor]]:
    """A past in blocks of rows, which are formed one at a time: rows, and their entries."""
    if isinstance(past, Tensor):
        yield slice(None), past
        return
    height, columns = past[0].shape
    most = max(1, BLOCK // columns)
    for first in range(0, height, most):
        rows = slice(first, first + most)
        block = past[0].up[rows] @ past[0].down
        if len(past) > 1:
            block.square_()
            for delta in past[1:]:
                block += (delta.up[rows] @ delta.down).square_()
            block.sqrt_()
        yield rows, block


def summed_overlap(past: Mapping[Projection, Weights], step: AnyStep) -> Tensor:
    """Σ `LowRankOverlap` over the projections that have a past."""
    total = step.zero()
    for projection, delta in step.deltas.items():
        if projection in past:
            total = total + LowRankOverlap.apply(past[projection], delta.up, delta.down)
    return total


def relative_weight(kappa: float, reference_loss: float, past: Sequence[Weights]) -> float:
    """λ for a κ: see the equation above."""
    scale = sum(_fourth_power(weights) for weights in past)
    return kappa * reference_loss / scale if scale > 0 else 0.0


def _fourth_power(past: Weights) -> float:
    """numel · rms(past)⁴"""
    if isinstance(past, Tensor):
        return past.numel() * past.float().square().mean().item() ** 2
    return sum(map(squared_norm, past)) ** 2 / math.prod(past[0].shape)


@torch.no_grad()
def root_of_squares(earlier: Sequence[Deltas], like: Mapping[Projection, Matrix]) -> dict[Projection, Weights]:
    """projection → (Σ_i Δ_i²)^½, entry by entry, (out, in) float32: whole where `like` is, and on its devices."""
    roots: dict[Projection, Weights] = {}
    for projection, matrix in like.items():
        own = [deltas[projection] for deltas in earlier if projection in deltas]
        if isinstance(matrix, Tensor):
            total = torch.zeros_like(matrix)
            for delta in own:
                total += delta.dense().to(total).square()
            roots[projection] = total.sqrt()
        else:
            roots[projection] = [delta.to(matrix.up.device) for delta in own]
    return roots


@dataclass(frozen=True)
class SelfRegularization(Regularizer):
    """Equation (3). weight: κ if `relative`, else the paper's absolute λ. squares: see above."""

    weight: float = 1.0
    relative: bool = True
    squares: bool = False
    name: ClassVar[str] = "self_regularization"
    concepts_only: ClassVar[bool] = False
    reads_past: ClassVar[bool] = True

    def begin(self, setting: AnySetting) -> Term:
        total = setting.past.total
        past: dict[Projection, Weights] = {
            place: matrix if isinstance(matrix, Tensor) else [matrix] for place, matrix in total.items()
        }
        if self.squares:
            past = root_of_squares(setting.past.deltas, total)
        weight = self.weight
        if self.relative and past and weight:
            weight = relative_weight(weight, setting.reference_loss, list(past.values()))

        def term(step: AnyStep) -> Tensor:
            return weight * summed_overlap(past, step)

        return term
