"""Context preservation: a new concept leaves the keys and values of other prompts where they are.

    L = w · mean over projections of  tr(Δ C Δᵀ) / tr(W C Wᵀ)        Δ = up·down,  C = E[s sᵀ]

s: the text states, at all places, of everyday captions and of the prompts of earlier exhibits; C their second moment.
Keys and values are linear in the text states, so tr(Δ C Δᵀ) = E‖Δ s‖² is how far the new delta moves them, and the
divisor E‖W s‖², W with the earlier deltas, makes it a share that means the same in every model. With Δ = up·down it is
tr((upᵀup)(down C downᵀ)): rank × rank matrices, one C for all projections, and no cost that grows with the museum.

In neither of the two papers; an idea of ours with close relatives, which edit or bound weights by the same moment:
UCE (arXiv:2308.14761), Custom Diffusion's constrained merge (arXiv:2212.04488), AlphaEdit (arXiv:2410.02355), gradient
projection memory (arXiv:2103.09762).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.projections import Projection
from ..step import Setting, Step
from .protocol import Regularizer, Term

HALVES = (torch.float16, torch.bfloat16)


def moved(up: Tensor, down: Tensor, second_moment: Tensor) -> Tensor:
    """E‖up·down·s‖² for states s of that second moment. up (out, rank), down (rank, in), second_moment (in, in)."""
    return ((up.T @ up) * (down @ second_moment @ down.T)).sum()


@torch.no_grad()
def statistics(setting: Setting) -> tuple[Tensor, Mapping[Projection, float]]:
    """C, (width, width) float32, and each projection's E‖W s‖²; everyday and old prompts weigh half each."""
    from ...model.attach import Reading
    from ...model.text_states import kept_states, moment_of

    groups = kept_states(setting.base, setting.past.prompts, setting.past.words)
    sizes = {}
    with Reading.of(setting.base):
        for projection, module in setting.base.modules.items():
            held = module.get_parameter("weight").dtype
            asked = held if held in HALVES else torch.float32  # float8 weights are cast to what they are asked in
            answers = [module(states[None].to(asked))[0].float() for states in groups]
            sizes[projection] = float(torch.stack([answer.square().sum(1).mean() for answer in answers]).mean())
    return moment_of(groups), sizes


@dataclass(frozen=True)
class ContextPreservation(Regularizer):
    """The equation above with its weight: 1 makes moving every key and value by its own size cost 1."""

    weight: float = 5.0
    name: ClassVar[str] = "context_preservation"

    def begin(self, setting: Setting) -> Term:
        second_moment, sizes = statistics(setting)

        def term(step: Step) -> Tensor:
            if not step.deltas:
                return step.latents.new_zeros(())
            shares = [moved(d.up, d.down, second_moment) / sizes[projection] for projection, d in step.deltas.items()]
            return self.weight * torch.stack(shares).mean()

        return term
