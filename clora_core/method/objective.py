"""The diffusion loss, with optional min-SNR weighting of timesteps."""

import torch
from torch import Tensor

from ..model.base import Schedule
from .step import Step


def diffusion_loss(step: Step, schedule: Schedule, *, min_snr_gamma: float = 0.0) -> Tensor:
    """Mean squared error between prediction and target, float32; the first term of equation (1) in arXiv:2304.06027.

    With a mask, the mean over each picture is weighted by it.
    """
    squares = (step.prediction.float() - step.target.float()).square()
    if step.mask is None:
        error = squares.flatten(1).mean(1)  # (b,)
    else:
        weights = step.mask.expand_as(squares).flatten(1)
        error = (squares.flatten(1) * weights).sum(1) / weights.sum(1)
    if min_snr_gamma:
        error = error * min_snr_weight(step.timesteps, schedule, gamma=min_snr_gamma)
    return error.mean()


def min_snr_weight(timesteps: Tensor, schedule: Schedule, *, gamma: float) -> Tensor:
    """min(SNR, γ)/SNR for noise predictions, min(SNR, γ)/(SNR + 1) for velocities (Hang et al. 2023, arXiv:2303.09556).

    Returns (b,), float32. For flow matching the divisor is (1 + √SNR)², which follows in the same way: the error of the
    clean latents is σ² = 1/(1 + √SNR)² times the error of the prediction.
    """
    snr = schedule.snr(timesteps)
    divisors = {"epsilon": snr, "v_prediction": snr + 1, "flow": (1 + snr.sqrt()).square()}
    return torch.minimum(snr, torch.full_like(snr, gamma)) / divisors[schedule.prediction]
