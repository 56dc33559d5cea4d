"""Sample pictures from any `Base`: DDIM with classifier-free guidance.

    x_prev = √ᾱ_prev · x̂₀ + √(1 - ᾱ_prev) · ε̂        Song et al. 2021 (DDIM), arXiv:2010.02502, equation (12), σ = 0

With flow matching the same step is Euler's: (1 - σ_prev)·x̂₀ + σ_prev·ε̂ = x + (σ_prev - σ)·v.

The timesteps trail (the first is the schedule's noisiest), as in Lin et al. 2024, arXiv:2305.08891, section 3.3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RecipeError
from ..seeds import seeded
from .base import Base, Conditioning, Schedule
from .concept import ConceptToken
from .threads import threads_of


@dataclass(frozen=True)
class Sampling:
    """How to sample. Picture i of a call depends only on `seed` and i."""

    steps: int = 20
    guidance: float = 5.0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise RecipeError(
                f"Sampling needs at least 1 step and a batch of at least 1, not {self.steps} and {self.batch_size}."
            )
        if not math.isfinite(self.guidance):
            raise RecipeError(f"The guidance is {self.guidance}; it must be a finite number. 1 turns it off.")


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    tokens: Sequence[ConceptToken] = (),
    sampling: Sampling = Sampling(),
    *,
    latent_shape: tuple[int, ...],
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One picture per prompt, (n, 3, h, w) in [-1, 1], float32 on the CPU. latent_shape: of a
    picture, as `Family.latent_shape` gives it.

    `report(done, total)` is called after every step of a batch and may raise to stop.
    """
    with threads_of(base.family):
        parts = sampled_latents(base, prompts, tokens, sampling, latent_shape=latent_shape, report=report)
        return torch.cat([base.decode_latents(latents) for latents in parts]).clamp(-1, 1)


@torch.no_grad()
def sampled_latents(
    base: Base,
    prompts: Sequence[str],
    tokens: Sequence[ConceptToken] = (),
    sampling: Sampling = Sampling(),
    *,
    latent_shape: tuple[int, ...],
    report: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """The latents that `sample` decodes, batch by batch: (b, c, h', w') on the base's device."""
    starts = range(0, len(prompts), sampling.batch_size)
    for number, begin in enumerate(starts):
        part = prompts[begin : begin + sampling.batch_size]
        noise = [
            torch.randn(latent_shape, generator=seeded("sample", sampling.seed, begin + row))
            for row in range(len(part))
        ]
        conditioning = base.encode_prompts([*part, ""], tokens)
        count = len(part)
        rows = torch.tensor([*range(count), *[count] * count], device=conditioning.states.device)
        latents = torch.stack(noise).to(base.device)
        times = timesteps(len(base.schedule.levels), sampling.steps)
        for index, time in enumerate(times):
            before = times[index + 1] if index + 1 < len(times) else None
            prediction = guided(base, latents, time, conditioning[rows], sampling.guidance)
            latents = ddim_step(latents, prediction, time, before, base.schedule)
            if report:
                report(number * sampling.steps + index + 1, len(starts) * sampling.steps)
        yield latents


def timesteps(count: int, steps: int) -> list[int]:
    """`steps` of the schedule's `count` timesteps, evenly spaced, from the noisiest down."""
    return [round(count - index * count / steps) - 1 for index in range(steps)]


def guided(base: Base, latents: Tensor, time: int, conditioning: Conditioning, guidance: float) -> Tensor:
    """unconditional + guidance · (conditional - unconditional); conditioning: n prompts, then n empty ones."""
    count = len(latents)
    if guidance == 1:
        times = torch.full((count,), time, device=latents.device)
        return base.predict(latents, times, conditioning[slice(count)])
    times = torch.full((2 * count,), time, device=latents.device)
    conditional, unconditional = base.predict(torch.cat([latents, latents]), times, conditioning).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def ddim_step(latents: Tensor, prediction: Tensor, time: int, before: int | None, schedule: Schedule) -> Tensor:
    """One step from timestep `time` to `before`; `None` is the clean picture."""
    times = torch.full((len(latents),), time, device=latents.device)
    clean = schedule.clean(latents, prediction, times)
    if before is None:
        return clean
    return schedule.noised(clean, schedule.noise(latents, prediction, times), torch.full_like(times, before))
