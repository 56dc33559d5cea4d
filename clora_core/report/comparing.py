"""Compare two states of a museum with the same prompts and the same noise: as pictures, and as one number per prompt.

The number is the displacement (`measure.displacement`) of the predictions for one picture at four noise levels. It
needs no classifier, so it works with any base.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from ..measure import displacement
from ..model.base import Base
from ..model.low_rank import Matrix
from ..model.projections import Projection
from ..model.sampling import Sampling, sample
from ..museum.museum import Museum, viewing
from ..pictures import to_picture
from ..seeds import seeded

LEVELS = 4  # timesteps at which predictions are compared: the middles of equal parts of the schedule


@dataclass(frozen=True, eq=False)
class State:
    """A base with a museum. The sum of the deltas that act everywhere is computed once."""

    base: Base
    museum: Museum

    @cached_property
    def everywhere(self) -> dict[Projection, Matrix]:
        return self.museum.compact()

    def viewing(self) -> AbstractContextManager[None]:
        return viewing(self.base, self.everywhere, self.museum.gated)


@dataclass(frozen=True, eq=False)
class Compared:
    """Prompts in two states. then, now: a picture of each; moved: displacements (n,), no unit."""

    prompts: tuple[str, ...]
    then: tuple[Image.Image, ...]
    now: tuple[Image.Image, ...]
    moved: Tensor


@dataclass(frozen=True, eq=False)
class Comparing:
    """How to compare states. latent_shape: (channels, h', w'); `tick` is called after every step, may raise to stop."""

    sampling: Sampling
    latent_shape: tuple[int, ...]
    tick: Callable[[], None]

    def __call__(self, then: State, now: State, prompts: Sequence[str]) -> Compared:
        """Sample every prompt in both states, and compare the predictions for the pictures of `then`.

        A state compared with itself is sampled once, and its displacements are 0.
        """
        before = self._sampled(then, prompts)
        if now is then:
            return Compared(tuple(prompts), pictures := _pictures(before), pictures, torch.zeros(len(prompts)))
        after = self._sampled(now, prompts)
        latents, parts = then.base.encode_pictures(before), []
        for start in range(0, len(prompts), self.sampling.batch_size):
            rows = slice(start, start + self.sampling.batch_size)
            seeds = range(len(prompts))[rows]
            noise = [torch.randn(self.latent_shape, generator=seeded("moved", self.sampling.seed, n)) for n in seeds]
            parts.append(displacements(then, now, prompts[rows], latents[rows], torch.stack(noise)))
            self.tick()
        return Compared(tuple(prompts), _pictures(before), _pictures(after), torch.cat(parts))

    def ticks(self, prompts: int, *, same: bool) -> int:
        """The number of ticks of a comparison of that many prompts. same: both states are the same."""
        batches = -(-prompts // self.sampling.batch_size)
        return batches * self.sampling.steps if same else batches * (2 * self.sampling.steps + 1)

    def _sampled(self, state: State, prompts: Sequence[str]) -> Tensor:
        def report(done: int, of: int) -> None:
            self.tick()

        shape, tokens = self.latent_shape, state.museum.tokens
        with state.viewing():
            return sample(state.base, prompts, tokens, self.sampling, latent_shape=shape, report=report)


def _pictures(samples: Tensor) -> tuple[Image.Image, ...]:
    return tuple(to_picture(sample) for sample in samples)


def displacements(then: State, now: State, prompts: Sequence[str], latents: Tensor, noise: Tensor) -> Tensor:
    """(n,): the displacement of the predictions for each prompt. latents, noise: (n, c, h, w), one per prompt."""
    without_prompt = predictions(then, [""] * len(prompts), latents, noise)
    before, after = (predictions(state, prompts, latents, noise) for state in (then, now))
    return displacement(before, after, without_prompt)


@torch.no_grad()
def predictions(state: State, prompts: Sequence[str], latents: Tensor, noise: Tensor) -> Tensor:
    """The model's predictions for the latents at every noise level, (n, levels, c, h, w), float32 on the CPU."""
    base = state.base
    latents, noise = latents.to(base.device), noise.to(base.device)
    at_levels = []
    with state.viewing():
        conditioning = base.encode_prompts(prompts, state.museum.tokens)
        for time in levels(len(base.schedule.levels)):
            times = torch.full((len(prompts),), time, device=base.device)
            at_levels.append(base.predict(base.schedule.noised(latents, noise, times), times, conditioning).cpu())
    return torch.stack(at_levels, dim=1)


def levels(count: int) -> list[int]:
    """The timesteps, out of `count`, at which predictions are compared."""
    return [(2 * level + 1) * count // (2 * LEVELS) for level in range(LEVELS)]
