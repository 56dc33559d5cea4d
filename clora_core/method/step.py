"""The inputs of a regularizer: the `Setting`, fixed while a concept is learned, and each training `Step`.

Recipes import this file when ComfyUI starts, so it imports models only for type checking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..model.low_rank import LowRank, Matrix
from ..model.projections import Projection

if TYPE_CHECKING:
    from ..model.base import Base, Conditioning
    from ..model.concept import ConceptToken
    from ..model.moments import Moments

Deltas = Mapping[Projection, LowRank]


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """Everything that a new concept can use of earlier exhibits. Empty for the first concept.

    total: projection → Σ of their deltas, (out, in) float32 without gradient, on the device of the trained deltas if a
    regularizer `reads_past`. deltas: the terms of that sum, one entry per exhibit. shared: the frozen delta that the
    new one continues, if there is one. prompts, tokens: one of each per exhibit. beside: these prompts, and the earlier
    words in the new concept's captions (`Museum.prompts_beside`).
    """

    total: Mapping[Projection, Matrix] = field(default_factory=dict)
    deltas: Sequence[Deltas] = ()
    shared: Deltas = field(default_factory=dict)
    prompts: Sequence[str] = ()
    tokens: Sequence[ConceptToken] = ()
    beside: Sequence[str] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class AnySetting:
    """Fixed while something is learned, a concept or a task of classes. Losses and moments are measured on first use.

    reference_loss: the mean loss before the new deltas. moments: of what each projection reads where the new deltas
    should change nothing, the second moment C = E[x xᵀ], (in, in) float32; and E‖W x‖², W with the earlier deltas.
    """

    past: Past
    measure_reference_loss: Callable[[], float]
    measure_moments: Callable[[], Moments]

    @cached_property
    def reference_loss(self) -> float:
        return self.measure_reference_loss()

    @cached_property
    def moments(self) -> Moments:
        return self.measure_moments()


class AnyStep(Protocol):
    """What every training step has, whatever is learned: the trained deltas."""

    @property
    def deltas(self) -> Deltas: ...

    def zero(self) -> Tensor:
        """A zero on the device of the loss, float32."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting(AnySetting):
    """Fixed while one concept is learned.

    latents: of the concept's pictures, (n, c, h, w) for each size. as_before: while entered, the model predicts as it
    did before this concept. batch_size: how many pictures fit into memory at once.
    """

    base: Base
    latents: Sequence[Tensor]
    as_before: Callable[[], AbstractContextManager[None]]
    batch_size: int


@dataclass(frozen=True, eq=False)
class Step:
    """One training step.

    number: of the batch, from 0. latents, noise, prediction, target: (b, c, h, w) or (b, c, 1, h, w) float32.
    timesteps: (b,). deltas: the trained deltas of the new exhibit. mask: how much each latent pixel counts, as one
    channel of the latents, in [0, 1]; None: all equally.
    """

    number: int
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: Conditioning
    prediction: Tensor
    target: Tensor
    deltas: Deltas
    mask: Tensor | None = None

    def zero(self) -> Tensor:
        """A zero on the device of the loss, float32."""
        return self.latents.new_zeros((), dtype=torch.float32)
