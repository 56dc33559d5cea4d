"""What the terms of a loss may look at: the `Setting`, fixed while one concept is learned, and one training `Step`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..model.base import Base, Conditioning
from ..model.concept import Concept, ConceptToken
from ..model.low_rank import LowRank
from ..model.projections import Projection

Deltas = Mapping[Projection, LowRank]


@dataclass(frozen=True, eq=False)
class Setting:
    """Fixed while one concept is learned.

    past: projection → Σ of the deltas of earlier exhibits, dense (out, in) float32 without gradient; empty for the
    first concept. old_prompts, old_words: what earlier exhibits were learned with, one of each an exhibit. as_before:
    while entered, the model answers as it did before this concept. reference_loss: the diffusion loss of the model
    as it stands before this concept, a fixed average. earlier: the deltas of which `past` is the sum, one entry an
    exhibit. continued: the shared delta that the new one started from, as it was, if there is one. latents: the
    concept's pictures as the UNet sees them, (n, c, h, w). beside: the old prompts, and old words in what is said of
    the concept's pictures, as `Museum.prompts_beside` gives them.
    """

    base: Base
    concept: Concept
    past: Mapping[Projection, Tensor]
    old_prompts: Sequence[str]
    old_words: Sequence[ConceptToken]
    as_before: Callable[[], AbstractContextManager[None]]
    measure_reference_loss: Callable[[], float]
    earlier: Sequence[Deltas] = ()
    continued: Deltas = field(default_factory=dict)
    latents: Tensor = field(default_factory=lambda: torch.zeros(1, 1, 1, 1))
    beside: Sequence[str] = ()

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
