"""Low-rank matrices equal the products of their factors."""

import math

import pytest
import torch

from clora_core.errors import MuseumError
from clora_core.model.low_rank import LowRank, concatenated, inner, truncated


def matrix(rows: int = 5, rank: int = 3, columns: int = 7, *, seed: int = 0) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    double = {"generator": rng, "dtype": torch.float64}
    return LowRank(torch.randn(rows, rank, **double), torch.randn(rank, columns, **double))


def entries(matrix: LowRank) -> list[list[float]]:
    """The matrix by a loop over its entries."""
    rows, columns = len(matrix.up), len(matrix.down[0])
    return [
        [sum(float(matrix.up[i, k] * matrix.down[k, j]) for k in range(len(matrix.down))) for j in range(columns)]
        for i in range(rows)
    ]


def test_dense_matches_a_loop_over_entries():
    one = matrix()
    assert one.dense().tolist() == [pytest.approx(row, rel=1e-12) for row in entries(one)]
    assert one.shape == (5, 7) and one.rank == 3


def test_inner_matches_a_loop_over_entries():
    one, other = matrix(rank=3), matrix(rank=2, seed=1)
    rows = zip(entries(one), entries(other), strict=True)
    expected = sum(a * b for row_a, row_b in rows for a, b in zip(row_a, row_b, strict=True))
    assert inner(one, other).item() == pytest.approx(expected, rel=1e-12)


def test_the_norm_is_the_root_of_the_sum_of_squares():
    one = matrix()
    expected = math.sqrt(sum(value**2 for row in entries(one) for value in row))
    assert one.norm().item() == pytest.approx(expected, rel=1e-12)


def test_the_norm_of_cancelling_parts_is_zero_and_not_nan():
    one = matrix()
    nothing = concatenated([one, one.scaled(-1)])
    assert nothing.norm().item() == pytest.approx(0, abs=1e-6)


def test_the_norm_of_zero_is_zero_with_a_gradient_of_zero():
    """As at the start of learning, where `up` is zero."""
    one = LowRank(torch.zeros(5, 3, requires_grad=True), matrix().down.clone().requires_grad_())
    one.norm().backward()
    assert one.norm().item() == 0
    assert not one.up.grad.any() and not one.down.grad.any(), "and no NaN"


def test_the_gradient_of_the_norm_is_that_of_the_dense_matrix():
    one, other = (LowRank(matrix().up.requires_grad_(), matrix().down.requires_grad_()) for _ in range(2))
    one.norm().backward()
    torch.linalg.matrix_norm(other.dense()).backward()
    torch.testing.assert_close(one.up.grad, other.up.grad)
    torch.testing.assert_close(one.down.grad, other.down.grad)


def test_the_norm_of_nan_is_nan():
    assert matrix().scaled(math.nan).norm().isnan()


def test_scaling_scales_every_entry_and_keeps_the_original():
    one = matrix()
    before = one.dense()
    for strength in (0.0, -2.0, 0.25):
        torch.testing.assert_close(one.scaled(strength).dense(), strength * before)
    assert torch.equal(one.dense(), before)
    assert one.scaled(1) is one


def test_concatenating_adds_the_matrices_of_any_ranks():
    parts = [matrix(rank=rank, seed=rank) for rank in (1, 4, 2)]
    total = concatenated(parts)
    torch.testing.assert_close(total.dense(), sum(part.dense() for part in parts))
    assert total.rank == 7
    assert concatenated(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    ("up", "down"),
    [((5, 3), (2, 7)), ((5,), (5, 7)), ((5, 3), (3,)), ((3, 5), (3, 7)), ((1, 5, 3), (3, 7))],
)
def test_factors_that_do_not_fit_are_refused_with_their_shapes(up: tuple[int, ...], down: tuple[int, ...]):
    with pytest.raises(MuseumError) as refusal:
        LowRank(torch.zeros(up), torch.zeros(down))
    assert str(up) in str(refusal.value) and str(down) in str(refusal.value)
    assert "(out, rank) and (rank, in)" in str(refusal.value)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (5, 40), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_truncated_matrix_is_the_nearest_of_its_rank(shape, rank):
    """Against the singular values of the dense matrix; also where there are more ranks than rows."""
    rng = torch.Generator().manual_seed(rank)
    whole = LowRank(torch.randn(shape[0], 8, generator=rng), torch.randn(8, shape[1], generator=rng))
    nearest, lost = truncated(whole, rank)
    least = torch.linalg.svdvals(whole.dense().double())[rank:].norm().item()
    assert nearest.rank <= rank and nearest.up.dtype == torch.float32
    assert lost == pytest.approx(least, rel=1e-5, abs=1e-5)
    assert (whole.dense() - nearest.dense()).norm().item() == pytest.approx(least, rel=1e-4, abs=1e-4)


def test_truncating_to_its_own_rank_keeps_the_matrix():
    whole = LowRank(torch.randn(4, 2), torch.randn(2, 5))
    assert truncated(whole, 2) == (whole, 0.0)


def test_parts_are_concatenated_in_order():
    whole = matrix(rows=5, rank=9, columns=7)
    ups, downs = whole.up.split([2, 4, 3], dim=1), whole.down.split([2, 4, 3])
    joined = concatenated([LowRank(up, down) for up, down in zip(ups, downs, strict=True)])
    assert torch.equal(joined.up, whole.up) and torch.equal(joined.down, whole.down)
