"""What a sequence of learned concepts is worth, as numbers.

An alignment matrix holds a_ij, how well concept j is shown after concept i was learned; there is none for j > i.
"""

from collections.abc import Sequence

from torch import Tensor

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


def worst_drop(alignment: Matrix) -> float:
    """Mean over all but the last concept of its best a_ij before the end, minus a_Nj.

    As Chaudhry et al. 2018 count it, arXiv:1801.10112.
    """
    count = len(alignment)
    best = [max(_known(alignment[after][place]) for after in range(place, count - 1)) for place in range(count - 1)]
    return _mean([value - _known(alignment[-1][place]) for place, value in enumerate(best)])


def drop_per_step(alignment: Matrix) -> float:
    """Mean over every step from the second, of the mean over concepts known before it, of a_t-1,j - a_tj.

    As the CODA-Prompt benchmark counts it (arXiv:2211.13218), which C-LoRA's authors use for classification.
    """
    steps = range(1, len(alignment))
    return _mean([_mean(_losses_between(alignment[step - 1], alignment[step], step)) for step in steps])


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """MMD² of two sets of features, (m, d) and (n, d), by the unbiased estimator; it may be below zero.

    k(a, b) = (a·b/d + 1)³, the kernel of KID (Bińkowski et al. 2018, arXiv:1801.01401) and, as far as we know, of
    C-LoRA's A_mmd and F_mmd. Use at least 64 of each. Raises ValueError for fewer than two.
    """
    m, n = len(x), len(y)
    if min(m, n) < 2:
        raise ValueError(f"a distance between sets needs two of each, not {m} and {n}")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / x.shape[1] + 1) ** 3

    def apart(kernels: Tensor, count: int) -> Tensor:
        return (kernels.sum() - kernels.diagonal().sum()) / (count * (count - 1))

    return float(apart(kernel(x, x), m) + apart(kernel(y, y), n) - 2 * kernel(x, y).mean())


def displacement(then: Tensor, now: Tensor, unasked: Tensor) -> Tensor:
    """(n,): ‖now - then‖ / ‖then - unasked‖ over all but the first dimension of three predictions for n prompts.

    then, now: for the prompt, in two states of a model. unasked: then, for the empty prompt. So 0 is as it was, and at
    1 the prediction is as far from what it was as if the prompt had been left away. It says that something changed,
    not whether that is worse. Ours, in no paper.
    """
    effect = (then - unasked).flatten(1).norm(dim=1)
    return (now - then).flatten(1).norm(dim=1) / effect.clamp_min(1e-12)


def _losses_between(before: Sequence[float | None], after: Sequence[float | None], known: int) -> list[float]:
    return [_known(before[place]) - _known(after[place]) for place in range(known)]


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("an alignment matrix knows every concept that was learned so far")
    return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
