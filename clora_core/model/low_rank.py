"""A low-rank matrix, kept as its two factors.

    value = up @ down        up (out, rank), down (rank, in)

C-LoRA writes it A·B with A on the output side, LoRA writes it B·A; `up` and `down` cannot be confused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MuseumError


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix `up @ down`, of shape (out, in)."""

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            shapes = f"up {tuple(self.up.shape)}, down {tuple(self.down.shape)}"
            raise MuseumError(f"These factors do not fit together: {shapes}. Expected (out, rank) and (rank, in).")

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """(out, in), in the factors' dtype."""
        return self.up @ self.down

    def to(self, device: torch.device) -> "LowRank":
        """Both factors on that device."""
        return LowRank(self.up.to(device), self.down.to(device))

    def in_float32(self) -> "LowRank":
        """Both factors in float32."""
        return LowRank(self.up.float(), self.down.float())

    def scaled(self, strength: float) -> "LowRank":
        """The matrix times `strength`."""
        return self if strength == 1 else LowRank(self.up * strength, self.down)

    def norm(self) -> Tensor:
        """The Frobenius norm, computed from rank × rank matrices only. The gradient of a zero matrix is zero."""
        square = inner(self, self)
        zero = square <= 0  # where a square root has no finite gradient
        return square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


Matrix = LowRank | Tensor  # (out, in), as its factors or whole


def compact(delta: LowRank, *, whole: int = 0) -> Matrix:
    """The same matrix in float32, as its factors; whole if that takes no more memory, or has at most `whole` values."""
    delta = delta.in_float32()
    values = math.prod(delta.shape)
    if values <= whole or values == compact_values(delta.shape, delta.rank):
        return delta.dense()
    return LowRank(_for_backward(delta.up), _for_backward(delta.down))


def _for_backward(factor: Tensor) -> Tensor:
    """A copy if it was made in inference mode, as by ComfyUI: such tensors have no part in a backward pass."""
    return factor.clone() if factor.is_inference() and not torch.is_inference_mode_enabled() else factor


def compact_values(shape: tuple[int, int], rank: int) -> int:
    """The number of values of a matrix of this shape and rank as its factors, or whole if these are fewer."""
    return min(math.prod(shape), rank * sum(shape))


def without(matrix: Matrix, delta: LowRank) -> Matrix:
    """matrix - delta, in the form of `matrix`, where and in the dtype that `delta` is."""
    if isinstance(matrix, Tensor):
        return matrix.to(delta.up) - delta.dense()
    return concatenated([LowRank(matrix.up.to(delta.up), matrix.down.to(delta.up)), delta.scaled(-1)])


def squared_norm(matrix: Matrix) -> float:
    """The sum of the squares of all entries."""
    return (matrix.square().sum() if isinstance(matrix, Tensor) else inner(matrix, matrix)).item()


@dataclass(frozen=True, eq=False)
class Sketch:
    """A second moment E[x xᵀ] = columns @ columnsᵀ, exactly or of random columns. columns: (in, any number)."""

    columns: Tensor


Moment = Tensor | Sketch  # E[x xᵀ], (in, in) float32


def mean_square(delta: LowRank, moment: Moment) -> Tensor:
    """E‖up·down·x‖² for x of that second moment: tr((upᵀup)(down C downᵀ)). No (out, in) matrix is formed."""
    if isinstance(moment, Sketch):
        read = delta.down @ moment.columns
        return ((delta.up.T @ delta.up) * (read @ read.T)).sum()
    return ((delta.up.T @ delta.up) * (delta.down @ moment @ delta.down.T)).sum()


def inner(a: LowRank, b: LowRank) -> Tensor:
    """⟨a, b⟩ = tr((up_aᵀ up_b)(down_b down_aᵀ)), without forming either matrix."""
    return ((a.up.T @ b.up) * (a.down @ b.down.T)).sum()


def concatenated(parts: Sequence[LowRank]) -> LowRank:
    """Σ parts, exactly, as one low-rank matrix: [up_1 … up_n] [down_1; …; down_n]."""
    if len(parts) == 1:
        return parts[0]
    return LowRank(torch.cat([part.up for part in parts], dim=1), torch.cat([part.down for part in parts], dim=0))


Weighted = tuple[LowRank, float]  # a delta and its strength


def weighted_sum(parts: Sequence[Weighted]) -> LowRank:
    """Σ strength · delta, exactly, as one low-rank matrix."""
    return concatenated([delta.scaled(strength) for delta, strength in parts])


def truncated(whole: LowRank, rank: int) -> tuple[LowRank, float]:
    """The nearest matrix of at most that rank, and ‖whole - nearest‖_F (Eckart and Young 1936).

    The singular values of up @ down are those of R_up R_downᵀ, with up = Q_up R_up and downᵀ = Q_down R_down, so the
    matrix is never formed. Computed in float64; the result has the dtype of `whole`.
    """
    if whole.rank <= rank:
        return whole, 0.0
    q_up, r_up = torch.linalg.qr(whole.up.double())
    q_down, r_down = torch.linalg.qr(whole.down.double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    roots = values[:rank].sqrt()
    up = q_up @ left[:, :rank] * roots
    down = roots[:, None] * right[:rank] @ q_down.T
    error = values[rank:].square().sum().sqrt().item()
    return LowRank(up.to(whole.up.dtype), down.to(whole.down.dtype)), error
