"""What the terms of a loss may look at: the `Setting`, fixed while one concept is learned, and one training `Step`.

Recipes come this way when ComfyUI starts, so nothing of a model is imported but for its types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from ..model.low_rank import LowRank
from ..model.projections import Projection

if TYPE_CHECKING:
    from ..model.base import Base, Conditioning
    from ..model.concept import ConceptToken

Deltas = Mapping[Projection, LowRank]


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """What earlier exhibits left; nothing for the first concept.

    dense: projection → Σ of their deltas, (out, in) float32 without gradient. deltas: the ones of which `dense` is the
    sum, one entry an exhibit. shared: the delta that the new one continues, as it was, if there is one. prompts, words:
    what they were learned with, one of each an exhibit. beside: the prompts, and the words in what is said of the new
    concept's pictures, as `Museum.prompts_beside` gives them.
    """

    dense: Mapping[Projection, Tensor] = field(default_factory=dict)
    deltas: Sequence[Deltas] = ()
    shared: Deltas = field(default_factory=dict)
    prompts: Sequence[str] = ()
    words: Sequence[ConceptToken] = ()
    beside: Sequence[str] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """Fixed while one concept is learned.

    latents: the concept's pictures as the UNet sees them, (n, c, h, w). as_before: while entered, the model answers as
    it did before this concept. reference_loss: the diffusion loss of the model as it stands before this concept, a
    fixed average, measured when it is first asked for.
    """

    base: Base
    past: Past
    latents: Tensor
    as_before: Callable[[], AbstractContextManager[None]]
    measure_reference_loss: Callable[[], float]

    @cached_property
    def reference_loss(self) -> float:
        return self.measure_reference_loss()


@dataclass(frozen=True, eq=False)
class Step:
    """What one training step saw.

    number: of the batch, from 0. latents, noise, prediction, target: (b, c, h, w) float32. timesteps: (b,). deltas: the
    new exhibit's, being trained.
    """

    number: int
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    prediction: Tensor
    target: Tensor
    deltas: Deltas
