"""Which frozen linear maps can carry a delta.

C-LoRA changes the key and value projections of a UNet's cross-attention and nothing else (arXiv:2304.06027, section 4).
A family of models (`families/`) says where they are. A projection has one name, whatever the model's layout, so that a
museum made in diffusers or in ComfyUI is the same museum.
"""

from dataclasses import dataclass
from typing import Literal

Role = Literal["key", "value"]


@dataclass(frozen=True, order=True)
class Projection:
    """One frozen linear map: its path inside the network, its role, and its shape (out, in).

    It is the whole weight of one module. For a map that is some rows of a fused weight, the number of its first row
    would be a fourth field of default 0; how many rows it has is `shape[0]`.
    """

    path: str
    role: Role
    shape: tuple[int, int]

    def __hash__(self) -> int:
        return hash(self.path)  # a large museum looks projections up many thousand times
