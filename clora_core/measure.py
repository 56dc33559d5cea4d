"""Metrics of continual learning.

An alignment matrix holds a_ij, the alignment of concept j after learning concept i; None for j > i.
"""

from collections.abc import Sequence

from torch import Tensor

Matrix = Sequence[Sequence[float | None]]


def initial_alignment(alignment: Matrix) -> float:
    """Mean of a_jj: the alignment of each concept right after it was learned."""
    return _mean([_known(row[place]) for place, row in enumerate(alignment)])


def final_alignment(alignment: Matrix) -> float:
    """Mean of a_Nj: the alignment of all concepts at the end."""
    return _mean([_known(value) for value in alignment[-1]])


def forgetting(alignment: Matrix) -> float:
    """Mean over all but the last concept of a_jj - a_Nj; 0 for one concept, negative if later learning helped."""
    last = alignment[-1]
    return _mean([_known(alignment[place][place]) - _known(last[place]) for place in range(len(last) - 1)])


def drop_per_step(alignment: Matrix) -> float:
    """Mean over every step t from the second, of the mean over all earlier concepts, of a_t-1,j - a_tj.

    The definition of the CODA-Prompt benchmark (arXiv:2211.13218), which C-LoRA's authors use for classification.
    """
    drops = []
    for step in range(1, len(alignment)):
        before, after = alignment[step - 1], alignment[step]
        drops.append(_mean([_known(before[place]) - _known(after[place]) for place in range(step)]))
    return _mean(drops)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the MMD² of two sets of features, (m, d) and (n, d); it may be negative.

    k(a, b) = (a·b/d + 1)³, the kernel of KID (Bińkowski et al. 2018, arXiv:1801.01401) and, as far as we know, of
    C-LoRA's A_mmd and F_mmd. Use at least 64 of each. Raises ValueError for fewer than two.
    """
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise ValueError(f"the distance needs at least two features in each set, not {m} and {n}")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / x.shape[1] + 1) ** 3

    def off_diagonal_mean(kernels: Tensor, count: int) -> Tensor:
        return (kernels.sum() - kernels.diagonal().sum()) / (count * (count - 1))

    return float(off_diagonal_mean(kernel(x, x), m) + off_diagonal_mean(kernel(y, y), n) - 2 * kernel(x, y).mean())


def displacement(then: Tensor, now: Tensor, empty: Tensor) -> Tensor:
    """(n,): ‖now - then‖ / ‖then - empty‖ over all but the first dimension of three predictions for n prompts.

    then, now: for the prompt, in two states of a model. empty: in the first state, for the empty prompt. 0 means
    unchanged; 1 means as far off as with an empty prompt. It measures change, not quality. Our own measure, not from a
    paper.
    """
    effect = (then - empty).flatten(1).norm(dim=1)
    return (now - then).flatten(1).norm(dim=1) / effect.clamp_min(1e-12)


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("an alignment matrix needs a value for every concept that was learned so far")
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
