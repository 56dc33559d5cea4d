"""Deltas beside a model's weights, and the gates that decide where in a prompt they act."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .low_rank import LowRank, Matrix
from .projections import Projection


@dataclass(frozen=True)
class Gate:
    """Where a delta acts: at the places of its word or, with `onwards`, from the first of them to the end."""

    word: str
    onwards: bool = False

    def opened(self, places: Mapping[str, Tensor], tokens: int) -> Tensor | None:
        """(b, tokens) bool; None if no prompt contains the word. places: word → where it is, (b, any length) bool."""
        if (mask := places.get(self.word)) is None:
            return None
        mask = F.pad(mask[:, :tokens], (0, max(0, tokens - mask.shape[1])))
        return mask.cumsum(1) > 0 if self.onwards else mask


class Attachment:
    """Deltas that are added to a model, one per projection, with or without a gate."""

    def __init__(self, deltas: Mapping[Projection, Matrix], gate: Gate | None = None) -> None:
        self.deltas, self.gate, self.on = deltas, gate, True
        self._placed: dict[tuple[Projection, torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While entered, these deltas are not applied."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def moved(self, projection: Projection, x: Tensor) -> Tensor:
        """Δ·x, (…, out), for x (…, in)."""
        for factor in self._factors(projection, x):
            x = F.linear(x, factor)
        return x

    def forget(self) -> None:
        """Drop the cached copies on devices."""
        self._placed = {}

    def _factors(self, projection: Projection, x: Tensor) -> tuple[Tensor, ...]:
        """The delta on the device and in the dtype of x. Frozen deltas are moved and cast once, not at every step."""
        place = projection, x.device, x.dtype
        if (factors := self._placed.get(place)) is None:
            delta = self.deltas[projection]
            originals = (delta.down, delta.up) if isinstance(delta, LowRank) else (delta,)
            factors = tuple(factor.to(x) for factor in originals)
            if not any(factor.requires_grad for factor in originals):
                self._placed[place] = factors
        return factors
