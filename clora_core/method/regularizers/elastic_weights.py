"""Elastic weight consolidation: a new concept avoids the weights that earlier concepts depend on.

    L = λ Σ_projections Σ_ij Ω_ij Δ_ij²        Ω: diagonal Fisher information, E[(∂L_diff/∂W_ij)²], of earlier concepts

Kirkpatrick et al. 2017 (EWC), arXiv:1612.00796; for low-rank deltas with the Fisher information of the full weights:
EWC-LoRA, arXiv:2602.17559. It is C-LoRA's penalty with Ω in place of past². Two things are ours. Nothing is stored and
no earlier picture is needed: Ω is measured on pictures that are sampled with the museum's words before the new concept
is learned (without gated deltas), and kept as whole matrices: it has no low rank. And the weight κ is relative:

    λ = κ · L_ref / Σ_projections mean(Ω) · ‖past‖²_F
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.low_rank import Matrix, squared_norm
from ...model.projections import Projection
from ...seeds import seeded
from ..step import Setting, Step
from .protocol import Regularizer, Term
from .self_regularization import summed_overlap

PICTURES, DRAWS = 16, 64  # samples of all earlier exhibits together; noisy versions of them for gradients


def fisher_information(setting: Setting, *, pictures: int = PICTURES, draws: int = DRAWS) -> dict[Projection, Tensor]:
    """projection → mean squared gradient of the loss by each weight, (out, in) float32, one noisy picture at a time.

    The cost does not grow with the museum: exhibits take turns.
    """
    from ...model.attach import attached
    from ...model.sampling import Sampling, sampled_latents

    base, past, shape = setting.base, setting.past, tuple(setting.latents[0].shape[1:])
    prompts = [past.prompts[number % len(past.prompts)] for number in range(pictures)]
    sampling = Sampling(seed=0, batch_size=setting.batch_size)
    latents = torch.cat(list(sampled_latents(base, prompts, past.tokens, sampling, latent_shape=shape)))
    zeros = {place: torch.zeros(place.shape, device=base.device, requires_grad=True) for place in past.total}
    squares = {place: torch.zeros(place.shape, device=base.device) for place in past.total}
    rng = seeded("fisher information", draws)
    with torch.enable_grad(), attached(base, zeros):
        for number in range(draws):
            times = torch.randint(len(base.schedule.levels), (1,), generator=rng).to(base.device)
            noise = torch.randn(1, *shape, generator=rng).to(base.device)
            clean = latents[number % pictures, None]
            with torch.no_grad():
                conditioning = base.encode_prompts([prompts[number % pictures]], past.tokens)
            prediction = base.predict(base.schedule.noised(clean, noise, times), times, conditioning)
            loss = (prediction - base.schedule.target(clean, noise, times)).square().mean()
            for place, gradient in zip(zeros, torch.autograd.grad(loss, list(zeros.values())), strict=True):
                squares[place] += gradient.float().square() / draws
    return squares


def relative_fisher_weight(
    kappa: float, reference_loss: float, importance: Mapping[Projection, Tensor], past: Mapping[Projection, Matrix]
) -> float:
    """λ for a κ: a delta as large as the past and unrelated to Ω costs κ times the diffusion loss."""
    scale = sum(omega.mean().item() * squared_norm(past[place]) for place, omega in importance.items())
    return kappa * reference_loss / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class ElasticWeights(Regularizer):
    """The equation above; weight: κ."""

    weight: float = 1.0
    name: ClassVar[str] = "elastic_weights"
    matrices: ClassVar[int] = 3  # while Ω is measured: zero deltas, their gradients, and the sums of squares

    def begin(self, setting: Setting) -> Term:
        roots: dict[Projection, Tensor] = {}
        weight = 0.0
        past = setting.past
        if self.weight and past.total and past.prompts:
            importance = fisher_information(setting)
            weight = relative_fisher_weight(self.weight, setting.reference_loss, importance, past.total)
            roots = {place: omega.sqrt() for place, omega in importance.items()}

        def term(step: Step) -> Tensor:
            return weight * summed_overlap(roots, step)

        return term
