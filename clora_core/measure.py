"""What a sequence of learned concepts is worth, as numbers.

An alignment matrix holds a_ij, how well concept j is shown after concept i was learned; there is none for j > i.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .low_rank import LowRank
from .museum import Exhibit, Museum
from .projections import Projection

Matrix = Sequence[Sequence[float | None]]


def learned(alignment: Matrix) -> float:
    """Mean of a_jj: how well each concept was shown right after it was learned."""
    return _mean([_known(row[place]) for place, row in enumerate(alignment)])


def kept(alignment: Matrix) -> float:
    """Mean of a_Nj: how well all concepts are shown at the end."""
    return _mean([_known(value) for value in alignment[-1]])


def forgetting(alignment: Matrix) -> float:
    """Mean over all but the last concept of a_jj - a_Nj; 0 for one concept, below 0 where later learning helped."""
    last = alignment[-1]
    return _mean([_known(alignment[place][place]) - _known(last[place]) for place in range(len(last) - 1)])


def overlap_matrix(museum: Museum) -> Tensor:
    """(n, n), float32: between exhibits i and j the cosine of |Δ_i| and |Δ_j| over all entries of all projections.

    It is 1 on the diagonal and 0 only where no weight was moved by both: what C-LoRA's penalty works on, made
    comparable. One dense matrix per exhibit is held at a time and projection.
    """
    count = len(museum.exhibits)
    products = torch.zeros(count, count, dtype=torch.float64)
    for projection in sorted({projection for exhibit in museum.exhibits for projection in exhibit.deltas}):
        moved = [_moved(exhibit, projection) for exhibit in museum.exhibits]
        flat = torch.stack(moved).flatten(1)
        products += (flat @ flat.T).double()
    norms = products.diagonal().clamp_min(1e-30).sqrt()
    return (products / norms[:, None] / norms[None, :]).float()


def size(exhibit: Exhibit) -> float:
    """‖Δ‖_F over all projections of an exhibit."""
    return float(sum((delta.norm().item() ** 2 for delta in exhibit.deltas.values()), start=0.0) ** 0.5)


def _moved(exhibit: Exhibit, projection: Projection) -> Tensor:
    delta = exhibit.deltas.get(projection)
    if delta is None:
        return torch.zeros(projection.shape)
    return LowRank(delta.up.float(), delta.down.float()).dense().abs()


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("an alignment matrix knows every concept that was learned so far")
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
