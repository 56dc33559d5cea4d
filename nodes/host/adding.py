"""A delta beside a projection, as a forward hook."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...clora_core.model.low_rank import LowRank


class Adding:
    """A forward hook that adds a delta to a projection's output. Several devices may run it at the same time."""

    def __init__(self, delta: LowRank) -> None:
        rows, columns = delta.shape
        cheaper = delta.rank * (rows + columns) < rows * columns
        self.factors = (delta.down, delta.up) if cheaper else (delta.up.float() @ delta.down.float(),)
        self.placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved = inputs[0]
        place = (moved.device, moved.dtype)
        factors = self.placed.get(place)
        if factors is None:
            factors = self.placed[place] = tuple(factor.to(moved) for factor in self.factors)
        for factor in factors:
            moved = F.linear(moved, factor)
        return output + moved.to(output.dtype)

    def forget(self) -> None:
        """Give back the memory on the devices."""
        self.placed = {}
