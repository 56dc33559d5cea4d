"""Context preservation: a new concept does not change the keys and values of other prompts.

    L = w · mean over projections of  tr(Δ C Δᵀ) / tr(W C Wᵀ)        Δ = up·down,  C = E[s sᵀ]

s: what a projection reads, at all places, for everyday captions and the prompts of earlier exhibits; C its second
moment, weighted as in `model/moments.py`. In a UNet these are the text states, with one C for all projections. Keys and
values are linear in them, so tr(Δ C Δᵀ) = E‖Δ s‖² is how far the new delta moves them. The divisor E‖W s‖², W with the
earlier deltas, makes this relative, so that it means the same in every model. With Δ = up·down it is
tr((upᵀup)(down C downᵀ)): rank × rank matrices, and a cost that does not grow with the museum.

This regularizer is ours. Related methods edit or bound weights by the same moment: UCE (arXiv:2308.14761), Custom
Diffusion's constrained merge (arXiv:2212.04488), AlphaEdit (arXiv:2410.02355), gradient projection memory
(arXiv:2103.09762).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...model.low_rank import mean_square
from ..step import AnySetting, AnyStep
from .protocol import Regularizer, Term


@dataclass(frozen=True)
class ContextPreservation(Regularizer):
    """The equation above. At weight 1, moving every key and value by its own length costs 1."""

    weight: float = 5.0
    name: ClassVar[str] = "context_preservation"
    concepts_only: ClassVar[bool] = False

    def begin(self, setting: AnySetting) -> Term:
        moments, sizes = setting.moments

        def term(step: AnyStep) -> Tensor:
            if not step.deltas:
                return step.zero()
            shares = [mean_square(d, moments[place]) / sizes[place] for place, d in step.deltas.items()]
            return self.weight * torch.stack(shares).mean()

        return term
