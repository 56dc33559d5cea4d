"""Distillation: what the model showed for old words before this concept, it shall still show.

    L = β · E‖ ε_θ(z_s, s, c_j) - ε_old(z_s, s, c_j) ‖²        c_j: a prompt with an old word, drawn anew for each z_s

Li and Hoiem 2016 (Learning without Forgetting), arXiv:1606.09282, brought to diffusion as the continual-customization
papers do: old words on the new pictures, with the model as it was before this concept as the teacher. What is said of
the new pictures stands around the old words too: our reading, which holds styles better (docs/measurements.md).
In MuseumMaker (arXiv:2404.16612) it stands for the feature half of its dual regularization; reconstructed, since that
formula could not be read: predictions where the paper may compare features inside the model, and old words only.

It takes one more forward pass without and one with a backward pass per step.
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
    """The equation above with its weight β."""

    weight: float = 1.0
    name: ClassVar[str] = "distillation"
    everywhere_only: ClassVar[bool] = True

    def begin(self, setting: Setting) -> Term:
        base, past = setting.base, setting.past
        with torch.no_grad():
            old = base.encode_prompts(past.beside, past.words) if past.beside else None

        def term(step: Step) -> Tensor:
            if old is None:
                return step.latents.new_zeros(())
            rng = seeded("distillation", step.number)
            chosen = torch.randint(len(past.beside), (len(step.latents),), generator=rng)
            conditioning = old[chosen.to(old.states.device)]
            noisy = base.schedule.noised(step.latents, step.noise, step.timesteps)
            with torch.no_grad(), setting.as_before():
                teacher = base.predict(noisy, step.timesteps, conditioning)
            student = base.predict(noisy, step.timesteps, conditioning)
            return self.weight * (student - teacher).square().mean()

        return term
