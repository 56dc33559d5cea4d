"""Style distillation: generated pictures look like the style's pictures as a whole, not like one of them.

    L = w · E[ ᾱ_s · KL( ρ(ẑ₀/τ) ‖ ρ(z̄/τ) ) ]        ρ: softmax over all numbers of a latent

The style distillation loss of MuseumMaker (arXiv:2404.16612). ẑ₀ is the clean latent that the model predicts, z̄ the
mean latent of the style's pictures, which has their palette but not their layout. This is a reconstruction: as far as
we could read the paper, it compares two latents that do not depend on the model, which would give no gradient. The
model's prediction on one side, the factor ᾱ_s (ẑ₀ is meaningless at high noise) and τ are ours. `of` "noise" is the
other reading: the predictions for the noised picture and for the noised mean,

    L = w · E[ KL( ρ(ε_θ(z_s)/τ) ‖ ρ(ε_θ(z̄_s)/τ) ) ]        without a gradient through the second
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import RecipeError
from ..step import Setting, Step
from .protocol import Regularizer, Term


def divergence(sample: Tensor, reference: Tensor, *, temperature: float) -> Tensor:
    """KL(ρ(sample/τ) ‖ ρ(reference/τ)) of each pair, (b,), in nats. Both (b, …); no gradient reaches the reference."""
    log_p = torch.log_softmax(sample.float().flatten(1) / temperature, dim=1)
    log_q = torch.log_softmax(reference.detach().float().flatten(1) / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@dataclass(frozen=True)
class StyleDistillation(Regularizer):
    """The equation above; weight: w, temperature: τ. of: "picture" or "noise"."""

    weight: float = 0.1
    temperature: float = 1.0
    of: str = "picture"
    name: ClassVar[str] = "style_distillation"
    one_concept_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise RecipeError(f"The temperature of style distillation is {self.temperature}; it must be above 0.")
        if self.of not in ("picture", "noise"):
            raise RecipeError(f"Style distillation compares 'picture' or 'noise', not '{self.of}'.")

    def begin(self, setting: Setting) -> Term:
        base = setting.base
        means_by_shape = {latents.shape[1:]: latents.mean(0).to(base.device) for latents in setting.latents}

        def term(step: Step) -> Tensor:
            schedule, means = base.schedule, means_by_shape[step.latents.shape[1:]].expand_as(step.latents)
            if self.of == "noise":
                with torch.no_grad():
                    noisy = schedule.noised(means, step.noise, step.timesteps)
                    reference = base.predict(noisy, step.timesteps, step.conditioning)
                return self.weight * divergence(step.prediction, reference, temperature=self.temperature).mean()
            noisy = schedule.noised(step.latents, step.noise, step.timesteps)
            clean = schedule.clean(noisy, step.prediction, step.timesteps)
            signal = schedule.signal(step.timesteps)
            return self.weight * (signal * divergence(clean, means, temperature=self.temperature)).mean()

        return term
