"""Noise, targets and loss weights match those of diffusers."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from clora_core.method.objective import diffusion_loss, min_snr_weight
from clora_core.method.step import Step
from clora_core.model.base import Conditioning, Prediction, Schedule
from clora_core.model.sampling import ddim_step

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction")
THEIRS = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMESTEPS = torch.tensor([0, 1, 17, 500, 998, 999])


def ours(prediction: Prediction) -> Schedule:
    return Schedule(THEIRS.alphas_cumprod, prediction)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (6, 4, 5, 5), generator=torch.Generator().manual_seed(seed))


def step(prediction: torch.Tensor, target: torch.Tensor) -> Step:
    nothing = torch.zeros_like(target)
    return Step(0, nothing, nothing, TIMESTEPS, Conditioning(torch.zeros(6, 1, 1)), prediction, target, {})


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_latents_are_noised_as_in_diffusers(prediction: Prediction):
    noisy = ours(prediction).noised(random(0), random(1), TIMESTEPS)
    torch.testing.assert_close(noisy, THEIRS.add_noise(random(0), random(1), TIMESTEPS))


def test_the_target_is_the_noise_or_the_velocity_of_diffusers():
    assert torch.equal(ours("epsilon").target(random(0), random(1), TIMESTEPS), random(1))
    velocity = ours("v_prediction").target(random(0), random(1), TIMESTEPS)
    torch.testing.assert_close(velocity, THEIRS.get_velocity(random(0), random(1), TIMESTEPS))


def test_noise_and_latents_are_recovered_from_the_velocity():
    schedule = ours("v_prediction")
    signal, noisy = schedule.coefficients(TIMESTEPS, random(0))
    latents, noise = random(0), random(1)
    velocity = schedule.target(latents, noise, TIMESTEPS)
    seen = schedule.noised(latents, noise, TIMESTEPS)
    torch.testing.assert_close(signal * velocity + noisy * seen, noise)
    torch.testing.assert_close(signal * seen - noisy * velocity, latents)


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e6])
def test_min_snr_weights_match_the_snr_of_diffusers(gamma: float):
    snr = compute_snr(THEIRS, TIMESTEPS)
    clipped = torch.stack([snr, torch.full_like(snr, gamma)], dim=1).amin(dim=1)
    torch.testing.assert_close(min_snr_weight(TIMESTEPS, ours("epsilon"), gamma=gamma), clipped / snr)
    torch.testing.assert_close(min_snr_weight(TIMESTEPS, ours("v_prediction"), gamma=gamma), clipped / (snr + 1))


def test_a_gamma_above_every_snr_has_no_effect_on_noise_predictions():
    error = step(random(2), random(3))
    plain = diffusion_loss(error, ours("epsilon"))
    torch.testing.assert_close(diffusion_loss(error, ours("epsilon"), min_snr_gamma=1e9), plain)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_plain_loss_is_the_mean_squared_error(prediction: Prediction):
    loss = diffusion_loss(step(random(2), random(3)), ours(prediction))
    torch.testing.assert_close(loss, F.mse_loss(random(2), random(3)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_weighted_loss_weights_each_picture_by_its_timestep(prediction: Prediction):
    predicted, target = random(2), random(3)
    snr = compute_snr(THEIRS, TIMESTEPS).tolist()
    total = 0.0
    for row, ratio in enumerate(snr):
        weight = min(ratio, 5.0) / (ratio if prediction == "epsilon" else ratio + 1)
        total += weight * F.mse_loss(predicted[row], target[row]).item()
    loss = diffusion_loss(step(predicted, target), ours(prediction), min_snr_gamma=5.0)
    assert loss.item() == pytest.approx(total / 6, rel=1e-5)


def test_float16_predictions_are_compared_in_float32():
    prediction, target = torch.full((6, 4, 5, 5), 300.0).half(), torch.full((6, 4, 5, 5), -300.0).half()
    assert diffusion_loss(step(prediction, target), ours("epsilon")).item() == 360_000.0


def test_flow_matching_is_noised_and_sampled_as_in_diffusers():
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    schedule = Schedule(theirs.sigmas.flip(0), "flow")
    latents, noise, times = random(0), random(1), TIMESTEPS
    noisy = schedule.noised(latents, noise, times)
    torch.testing.assert_close(noisy, theirs.scale_noise(latents, theirs.timesteps.flip(0)[times], noise))
    velocity = schedule.target(latents, noise, times)
    torch.testing.assert_close(schedule.clean(noisy, velocity, times), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.noise(noisy, velocity, times), noise, atol=1e-5, rtol=1e-5)
    theirs.set_timesteps(sigmas=[float(schedule.levels[800]), float(schedule.levels[300])])
    theirs.set_begin_index(0)
    first, second = (int((schedule.levels - sigma).abs().argmin()) for sigma in theirs.sigmas[:2])
    velocity = random(2)
    (stepped,) = theirs.step(velocity, theirs.timesteps[0], noisy, return_dict=False)
    torch.testing.assert_close(ddim_step(noisy, velocity, first, second, schedule), stepped, atol=1e-3, rtol=1e-3)


def test_min_snr_of_flow_matching_weights_the_error_of_clean_latents():
    schedule = Schedule(torch.linspace(0.01, 0.99, 1000), "flow")
    sigma = schedule.levels[TIMESTEPS]
    snr = ((1 - sigma) / sigma).square()
    expected = snr.clamp(max=5.0) * sigma.square()
    torch.testing.assert_close(min_snr_weight(TIMESTEPS, schedule, gamma=5.0), expected)
