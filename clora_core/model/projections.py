"""The frozen linear maps that can carry a delta.

C-LoRA changes the key and value projections of a UNet's cross-attention and nothing else (arXiv:2304.06027, section 4).
A model family (`families/`) finds them. A projection has one name in every model layout, so a museum made in diffusers
is the same museum in ComfyUI.
"""

from dataclasses import dataclass
from typing import Literal

Role = Literal["query", "key", "value"]


@dataclass(frozen=True, order=True)
class Projection:
    """One frozen linear map: its path inside the network, its role, and its shape (out, in).

    It is the whole weight of one module. For some rows of a fused weight, add a field for the first row, 0 by default;
    `shape[0]` is the number of rows.
    """

    path: str
    role: Role
    shape: tuple[int, int]

    def __hash__(self) -> int:
        return hash(self.path)  # a large museum looks up projections many thousands of times
