"""Distillation: predictions for earlier words stay as they were before this concept.

    L = β · E‖ ε_θ(z_s, s, c_j) - ε_old(z_s, s, c_j) ‖²        c_j: a random prompt with an earlier word

Li and Hoiem 2016 (Learning without Forgetting), arXiv:1606.09282, adapted to diffusion as in papers on continual
customization: the earlier words on the new pictures, with the model before this concept as the teacher. The captions of
the new pictures are also used with the earlier words; this is ours, and it preserves styles better
(docs/measurements.md). In the museum-maker recipe it replaces the feature half of MuseumMaker's dual regularization
(arXiv:2404.16612). That formula was not readable, so this is a reconstruction: it compares predictions, where the paper
may compare features inside the model, and uses earlier words only.

Every step takes one more forward pass without gradients and one with a backward pass.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...seeds import seeded
from ..step import Setting, Step
from .protocol import Regularizer, Term


@dataclass(frozen=True)
class Distillation(Regularizer):
    """The equation above; weight: β."""

    weight: float = 1.0
    name: ClassVar[str] = "distillation"
    everywhere_only: ClassVar[bool] = True
    passes: ClassVar[int] = 1

    def begin(self, setting: Setting) -> Term:
        base, past = setting.base, setting.past
        with torch.no_grad():
            # on the CPU, since layer-wise words make them large
            old = base.encode_prompts(past.beside, past.tokens).to(torch.device("cpu")) if past.beside else None

        def term(step: Step) -> Tensor:
            if old is None:
                return step.zero()
            rng = seeded("distillation", step.number)
            chosen = torch.randint(len(past.beside), (len(step.latents),), generator=rng)
            conditioning = old[chosen].to(base.device)
            noisy = base.schedule.noised(step.latents, step.noise, step.timesteps)
            with torch.no_grad(), setting.as_before():
                teacher = base.predict(noisy, step.timesteps, conditioning)
            student = base.predict(noisy, step.timesteps, conditioning)
            return self.weight * (student - teacher).square().mean()

        return term
