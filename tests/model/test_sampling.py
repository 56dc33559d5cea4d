"""Sampling is DDIM with guidance, as diffusers does it, and a picture depends on its own seed alone."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler

from clora_core.errors import RecipeError
from clora_core.model.base import Base, Prediction
from clora_core.model.concept import ConceptToken
from clora_core.model.sampling import Sampling, sample, timesteps
from clora_core.seeds import seeded
from tests.small import LATENT_SHAPE, base_of, small_starter

PROMPTS = ["a photo of a cat", "a photo of a dog with red hair", "a photo of <my-cat>"]
TOKEN = ConceptToken("<my-cat>", {"clip_l": torch.full((1, 1, 128), 0.02)})


def theirs() -> DDIMScheduler:
    return DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)


# Without 48, 61 and some more, where rounding in diffusers shifts one timestep or gives -1 as the last one.
@pytest.mark.parametrize("steps", [*range(1, 48), 50, 64, 80, 100, 128, 250, 500, 1000])
def test_timesteps_match_the_trailing_spacing_of_diffusers(steps: int):
    scheduler = theirs()
    scheduler.set_timesteps(steps)
    assert timesteps(1000, steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 3, 7, 48, 61, 103, 122, 333, 999])
def test_timesteps_start_at_the_noisiest_and_fall_evenly(steps: int):
    times = timesteps(1000, steps)
    assert len(times) == steps and times[0] == 999 and times[-1] >= 0
    gaps = [before - after for before, after in itertools.pairwise(times)]
    assert all(abs(gap - 1000 / steps) <= 1 for gap in gaps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_sampled_picture_matches_diffusers(prediction: Prediction, guidance: float):
    starter = small_starter(prediction)
    base, scheduler = base_of(starter), starter.scheduler
    assert base.schedule.prediction == prediction
    prompt, steps, seed = PROMPTS[1], 5, 3
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, *LATENT_SHAPE, generator=seeded("sample", seed, 0))
    with torch.no_grad():
        prompted, unprompted = (base.encode_prompts([text], []).states for text in (prompt, ""))
        for time in scheduler.timesteps:
            conditional = starter.unet(latents, time, encoder_hidden_states=prompted).sample
            unconditional = starter.unet(latents, time, encoder_hidden_states=unprompted).sample
            noise = unconditional + guidance * (conditional - unconditional)
            latents = scheduler.step(noise, time, latents, eta=0.0).prev_sample
        expected = starter.vae.decode(latents).sample.clamp(-1, 1)
    ours = sample(base, [prompt], (), Sampling(steps, guidance, seed), latent_shape=LATENT_SHAPE)
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, 64, 64)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_guidance_seed_and_prompt_change_the_picture(base: Base):
    def picture(guidance: float = 4.0, seed: int = 0, prompt: str = PROMPTS[0]) -> torch.Tensor:
        return sample(base, [prompt], (), Sampling(2, guidance, seed), latent_shape=LATENT_SHAPE)

    plain = picture()
    assert torch.equal(picture(), plain)
    for other in (picture(guidance=1.0), picture(seed=1), picture(prompt=PROMPTS[1])):
        assert not torch.allclose(other, plain, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_picture_does_not_depend_on_the_rest_of_its_batch(base: Base, batch_size: int):
    alone = [
        sample(base, PROMPTS[: index + 1], [TOKEN], Sampling(2, batch_size=1), latent_shape=LATENT_SHAPE)[index]
        for index in range(3)
    ]
    together = sample(base, PROMPTS, [TOKEN], Sampling(2, batch_size=batch_size), latent_shape=LATENT_SHAPE)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_every_step_of_a_batch_is_reported_and_a_report_can_stop_sampling(base: Base):
    reports: list[tuple[int, int]] = []

    def report(done: int, of: int) -> None:
        reports.append((done, of))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(base, PROMPTS, [TOKEN], Sampling(2, batch_size=2), latent_shape=LATENT_SHAPE, report=report)
    assert reports == [(1, 4), (2, 4), (3, 4)]


def test_sampling_does_not_change_the_global_rng(base: Base):
    before = torch.get_rng_state()
    sample(base, PROMPTS[:1], (), Sampling(1), latent_shape=LATENT_SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("numbers", [{"steps": 0}, {"batch_size": 0}])
def test_zero_steps_and_a_batch_size_of_zero_are_refused(numbers: dict[str, int]):
    with pytest.raises(RecipeError, match=r"at least 1 step and a batch of at least 1, not .*0"):
        Sampling(**numbers)


@pytest.mark.parametrize("guidance", [math.nan, math.inf, -math.inf])
def test_a_guidance_that_is_not_finite_is_refused(guidance: float):
    with pytest.raises(RecipeError, match="finite number"):
        Sampling(guidance=guidance)
