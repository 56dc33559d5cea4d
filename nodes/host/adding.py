"""A delta beside a projection, as a forward hook."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...clora_core.low_rank import LowRank


class Adding:
    """A forward hook that adds a delta to a projection's output."""

    def __init__(self, delta: LowRank) -> None:
        rows, columns = delta.shape
        cheaper = delta.rank * (rows + columns) < rows * columns
        self.factors = (delta.down, delta.up) if cheaper else (delta.up.float() @ delta.down.float(),)
        self.placed: tuple[Tensor, ...] = ()

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved = inputs[0]
        if not self.placed or (self.placed[0].device, self.placed[0].dtype) != (moved.device, moved.dtype):
            self.placed = tuple(factor.to(moved) for factor in self.factors)
        for factor in self.placed:
            moved = F.linear(moved, factor)
        return output + moved.to(output.dtype)

    def forget(self) -> None:
        """Give back the memory on the device."""
        self.placed = ()
