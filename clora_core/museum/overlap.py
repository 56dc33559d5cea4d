"""How much the exhibits of a museum move, and how much of that they move in the same weights."""

import torch
from torch import Tensor

from ..model.low_rank import LowRank
from ..model.projections import Projection
from .museum import Exhibit, Museum


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
