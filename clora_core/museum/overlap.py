"""The size of exhibits' deltas, and the overlap between them."""

import torch
from torch import Tensor

from ..model.projections import Projection
from .museum import Exhibit, Museum


def overlap_matrix(museum: Museum) -> Tensor:
    """(n, n), float32: the cosine of |Δ_i| and |Δ_j| over all entries of all projections, for exhibits i and j.

    It is 1 on the diagonal, and 0 only if no weight is changed by both: a normalized form of C-LoRA's penalty. Memory:
    one dense matrix per exhibit, for one projection at a time.
    """
    count = len(museum.exhibits)
    products = torch.zeros(count, count, dtype=torch.float64)
    for projection in sorted({projection for exhibit in museum.exhibits for projection in exhibit.deltas}):
        flat = torch.stack([_magnitudes(exhibit, projection) for exhibit in museum.exhibits]).flatten(1)
        products += (flat @ flat.T).double()
    norms = products.diagonal().clamp_min(1e-30).sqrt()
    return (products / norms[:, None] / norms[None, :]).float()


def size(exhibit: Exhibit) -> float:
    """‖Δ‖_F over all projections of an exhibit."""
    return float(sum((delta.norm().item() ** 2 for delta in exhibit.deltas.values()), start=0.0) ** 0.5)


def _magnitudes(exhibit: Exhibit, projection: Projection) -> Tensor:
    delta = exhibit.deltas.get(projection)
    if delta is None:
        return torch.zeros(projection.shape)
    return delta.in_float32().dense().abs()
