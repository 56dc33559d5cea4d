"""The frozen linear maps that can carry a delta.

C-LoRA changes the key and value projections of a model's cross-attention and nothing else (arXiv:2304.06027,
section 4). A model family (`families/`) finds them. A projection has one name in every model layout, so a museum made
in diffusers is the same museum in ComfyUI.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Role = Literal["query", "key", "value", "key_value"]  # the last: both in one weight, changed as one


@dataclass(frozen=True, order=True)
class Projection:
    """One frozen linear map: its path inside the network, its role, and its shape (out, in)."""

    path: str
    role: Role
    shape: tuple[int, int]

    def __hash__(self) -> int:
        return hash(self.path)  # a large museum looks up projections many thousands of times


@dataclass(frozen=True)
class Place:
    """Where one layout holds a projection: the module's name, and the projection's first row in its weight."""

    module: str
    first_row: int = 0


@dataclass(frozen=True, eq=False)
class Slot:
    """A projection in a loaded network: all rows of a module's weight, or those from `first_row` on.

    Some architectures store the queries, keys and values of an attention in one weight.
    """

    module: nn.Module
    first_row: int
    rows: int

    @property
    def whole(self) -> bool:
        """Whether the projection is the whole weight of its module."""
        return self.rows == len(self.module.get_parameter("weight"))

    @property
    def weight(self) -> Tensor:
        """(rows, in), in its stored dtype."""
        return self.of(self.module.get_parameter("weight").detach())

    def of(self, weight: Tensor) -> Tensor:
        """The projection's rows of a weight like the module's."""
        return weight if self.rows == len(weight) else weight[self.first_row : self.first_row + self.rows]

    def output(self, output: Tensor) -> Tensor:
        """The projection's part (…, rows) of the module's output."""
        return output if self.whole else output[..., self.first_row : self.first_row + self.rows]

    def added(self, output: Tensor, change: Tensor) -> Tensor:
        """The module's output with a change (…, rows) of the projection's part. A new tensor."""
        if self.whole:
            return output + change
        changed = self.output(output) + change
        return output.slice_scatter(changed, dim=-1, start=self.first_row, end=self.first_row + self.rows)
