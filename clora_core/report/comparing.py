"""The same prompts and the same noise under two states of a museum: as pictures, and as one number each.

The number is the displacement (`measure.displacement`) of the predictions for one picture at four noise levels. No
classifier is needed, so it can be had over any base.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..measure import displacement
from ..model.base import Base
from ..model.projections import Projection
from ..model.sampling import Sampling, sample
from ..museum.museum import Museum, viewing
from ..seeds import seeded

LEVELS = 4  # timesteps at which predictions are compared, in the middles of as many equal parts of the schedule


@dataclass(frozen=True, eq=False)
class State:
    """A base that shows a museum, and the sum of what the museum applies everywhere, made once."""

    base: Base
    museum: Museum

    @cached_property
    def everywhere(self) -> dict[Projection, Tensor]:
        return self.museum.dense()

    def viewing(self) -> AbstractContextManager[None]:
        return viewing(self.base, self.everywhere, self.museum.gated)


@dataclass(frozen=True, eq=False)
class Compared:
    """Prompts in two states of a museum. then, now: pictures (n, 3, h, w) in [-1, 1]; moved: (n,), no unit."""

    prompts: tuple[str, ...]
    then: Tensor
    now: Tensor
    moved: Tensor


@dataclass(frozen=True, eq=False)
class Comparing:
    """How states are compared. latent_shape: (channels, h', w'); `tick` hears of every step and may raise to stop."""

    sampling: Sampling
    latent_shape: tuple[int, int, int]
    tick: Callable[[], None]

    def __call__(self, then: State, now: State, prompts: Sequence[str]) -> Compared:
        """Sample every prompt in both states, and compare the predictions for the pictures that `then` shows.

        A state compared with itself has moved by 0, and is sampled once.
        """
        before = self._sampled(then, prompts)
        if now is then:
            return Compared(tuple(prompts), before, before, torch.zeros(len(prompts)))
        after = self._sampled(now, prompts)
        latents = then.base.encode_pictures(before)
        size, parts = self.sampling.batch_size, []
        for start in range(0, len(prompts), size):
            rows = range(start, min(start + size, len(prompts)))
            noise = [torch.randn(self.latent_shape, generator=seeded("moved", self.sampling.seed, row)) for row in rows]
            part = slice(rows.start, rows.stop)
            parts.append(moved(then, now, prompts[part], latents[part], torch.stack(noise)))
            self.tick()
        return Compared(tuple(prompts), before, after, torch.cat(parts))

    def ticks(self, prompts: int, *, same: bool) -> int:
        """How many ticks a comparison of so many prompts takes."""
        batches = -(-prompts // self.sampling.batch_size)
        return batches * self.sampling.steps if same else batches * (2 * self.sampling.steps + 1)

    def _sampled(self, state: State, prompts: Sequence[str]) -> Tensor:
        def report(done: int, of: int) -> None:
            self.tick()

        shape, tokens = self.latent_shape, state.museum.tokens
        with state.viewing():
            return sample(state.base, prompts, tokens, self.sampling, latent_shape=shape, report=report)


def moved(then: State, now: State, prompts: Sequence[str], latents: Tensor, noise: Tensor) -> Tensor:
    """(n,): how far the answers to the prompts have moved. latents, noise: (n, c, h, w), a picture for each prompt."""
    unasked = predictions(then, [""] * len(prompts), latents, noise)
    before, after = (predictions(state, prompts, latents, noise) for state in (then, now))
    return displacement(before, after, unasked)


@torch.no_grad()
def predictions(state: State, prompts: Sequence[str], latents: Tensor, noise: Tensor) -> Tensor:
    """What the model predicts for the latents at every noise level, (n, levels, c, h, w), float32 on the CPU."""
    base = state.base
    latents, noise = latents.to(base.device), noise.to(base.device)
    at_levels = []
    with state.viewing():
        conditioning = base.encode_prompts(prompts, state.museum.tokens)
        for time in levels(len(base.schedule.alphas_cumprod)):
            times = torch.full((len(prompts),), time, device=base.device)
            at_levels.append(base.predict(base.schedule.noised(latents, noise, times), times, conditioning).cpu())
    return torch.stack(at_levels, dim=1)


def levels(count: int) -> list[int]:
    """The timesteps, out of `count`, at which predictions are compared."""
    return [(2 * level + 1) * count // (2 * LEVELS) for level in range(LEVELS)]
