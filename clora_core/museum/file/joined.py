"""A tensor that is concatenated from many pieces while it is written, and never in memory as a whole."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

PART_BYTES = 8 * 1024 * 1024


class Rows(Protocol):
    """A tensor, or a slice of an open file."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Joined:
    """Pieces concatenated along the first dimension ("below") or the second ("beside") to one tensor of that shape."""

    pieces: Sequence[Rows]
    side: Literal["below", "beside"]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def parts(self) -> Iterator[Tensor]:
        """The tensor on the CPU, in order, some megabytes of rows at a time."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize or 1
        step = max(1, PART_BYTES // row)
        if self.side == "beside":
            for start in range(0, self.shape[0], step):
                yield torch.cat([self._rows(piece, start, step) for piece in self.pieces], dim=1)
            return
        gathered: list[Tensor] = []
        count = 0
        for piece in self.pieces:
            start = 0
            while len(rows := self._rows(piece, start, step)):
                gathered.append(rows)
                start, count = start + step, count + len(rows)
                if count >= step:
                    yield torch.cat(gathered)
                    gathered, count = [], 0
        if gathered:
            yield torch.cat(gathered)

    def _rows(self, piece: Rows, start: int, count: int) -> Tensor:
        return piece[start : start + count].to("cpu", self.dtype)
