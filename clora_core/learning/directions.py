"""Restrict a new delta to some directions of the text states, so that it cannot change others.

Δ s = up · (down s)        is zero for every state s that is orthogonal to all rows of `down`
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import RecipeError
from ..model.base import Base
from ..model.text_states import preserved_states, second_moment
from ..museum.museum import Museum
from ..seeds import seeded

QUIET_SHARE = 0.5  # of the width


def free_directions(taken: Sequence[Tensor], rank: int, width: int) -> Tensor:
    """`rank` rows of one fixed random orthogonal matrix: those that `taken` uses the least.

    taken: the `down` factors (r, width) of earlier deltas. Returns (rank, width), orthonormal rows. As long as there
    are unused rows, two deltas with such factors have Δ_i Δ_jᵀ = 0 exactly. Orthogonal Adaptation (Po et al. 2024,
    arXiv:2312.02432) draws the rows at random; choosing free ones is ours. Raises RecipeError for rank above width.
    """
    if rank > width:
        raise RecipeError(f"Rank {rank} needs as many orthogonal directions, but there are only {width}. Lower it.")
    square = torch.randn(width, width, generator=seeded("orthogonal directions", width), dtype=torch.float64)
    directions = torch.linalg.qr(square).Q.float()
    used = torch.zeros(width)
    for down in taken:
        used += (down.float() @ directions.T).square().sum(0)
    # Rounding must not decide between unused rows: they keep their order.
    used = torch.where(used < 1e-6 * used.max().clamp_min(1e-12), 0.0, used)
    return directions[torch.argsort(used, stable=True)[:rank].sort().values]


def quiet_directions(base: Base, museum: Museum) -> Tensor:
    """The projector (width, width) onto the directions that everyday and earlier prompts use the least.

    They are the eigenvectors of the smallest eigenvalues of the states' second moment C, half of the width. For P that
    projector, E‖Δ P s‖² ≤ ‖Δ‖²₂ · the sum of these eigenvalues. Relatives: gradient projection memory
    (arXiv:2103.09762), AlphaEdit (arXiv:2410.02355).
    """
    if base.family.reads != "states":
        raise RecipeError(
            f"Quiet directions are those of text states, but the projections of {base.family.title} do not read text "
            "states directly. Choose another recipe."
        )
    moment = second_moment(preserved_states(base, museum.prompts, museum.tokens)).cpu()
    values, vectors = torch.linalg.eigh(moment.double())
    quiet = vectors[:, : round(len(values) * QUIET_SHARE)]
    return (quiet @ quiet.T).float()
