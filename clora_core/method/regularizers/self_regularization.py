"""Self-regularization: a new concept avoids the weights that earlier concepts changed.

    L = λ Σ_projections ‖ past ∘ (up·down) ‖²_F        Smith et al. 2023 (C-LoRA), arXiv:2304.06027, equation (3)

The paper takes the absolute value of past, which makes no difference under the square. Its λ (1e8 as far as we know)
depends on the model, rank and learning rate: the term grows with the fourth power of the deltas. The relative weight κ
is ours:

    λ = κ · L_ref / Σ_projections numel · rms(past)⁴

so that with κ = 1, a delta as large as the past and unrelated to it costs as much as the diffusion loss L_ref.

`squares` uses (Σ Δ_i²)^½ instead of past = Σ Δ_i, so that earlier deltas of opposite signs do not cancel, which would
leave their weights unprotected. Ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...model.projections import Projection
from ..step import AnySetting, AnyStep, Deltas
from .protocol import Regularizer, Term


class LowRankOverlap(torch.autograd.Function):
    """‖past ∘ (up·down)‖²_F of one projection, without dense matrices in the backward pass.

    The gradient flows to up and down only. With G = 2 past² ∘ (up·down), ∂/∂up = G·downᵀ and ∂/∂down = upᵀ·G: only
    these two thin matrices are kept, so all projections together need no more dense memory than the largest one.
    Inputs are float32.
    """

    @staticmethod
    def forward(ctx: Any, past: Tensor, up: Tensor, down: Tensor) -> Tensor:
        product = past * (up @ down)
        gradient = past * product * 2
        ctx.save_for_backward(gradient @ down.T, up.T @ gradient)
        return product.square().sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, Tensor]:
        for_up, for_down = ctx.saved_tensors
        return None, upstream[0] * for_up, upstream[0] * for_down


def summed_overlap(past: Mapping[Projection, Tensor], step: AnyStep) -> Tensor:
    """Σ `LowRankOverlap` over the projections that have a past."""
    total = step.zero()
    for projection, delta in step.deltas.items():
        if projection in past:
            total = total + LowRankOverlap.apply(past[projection], delta.up, delta.down)
    return total


def relative_weight(kappa: float, reference_loss: float, past: list[Tensor]) -> float:
    """λ for a κ: see the equation above."""
    scale = sum(p.numel() * p.float().square().mean().item() ** 2 for p in past)
    return kappa * reference_loss / scale if scale > 0 else 0.0


@torch.no_grad()
def root_of_squares(earlier: Sequence[Deltas], like: Mapping[Projection, Tensor]) -> dict[Projection, Tensor]:
    """projection → (Σ_i Δ_i²)^½, entry by entry, (out, in) float32 on the devices of `like`."""
    roots = {}
    for projection, matrix in like.items():
        total = torch.zeros_like(matrix)
        for deltas in earlier:
            if projection in deltas:
                total += deltas[projection].dense().to(total).square()
        roots[projection] = total.sqrt()
    return roots


@dataclass(frozen=True)
class SelfRegularization(Regularizer):
    """Equation (3). weight: κ if `relative`, else the paper's absolute λ. squares: see above."""

    weight: float = 1.0
    relative: bool = True
    squares: bool = False
    name: ClassVar[str] = "self_regularization"
    concepts_only: ClassVar[bool] = False

    def begin(self, setting: AnySetting) -> Term:
        past = root_of_squares(setting.past.deltas, setting.past.dense) if self.squares else setting.past.dense
        weight = self.weight
        if self.relative and past and weight:
            weight = relative_weight(weight, setting.reference_loss, list(past.values()))

        def term(step: AnyStep) -> Tensor:
            return weight * summed_overlap(past, step)

        return term
