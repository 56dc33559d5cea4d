"""Metrics of continual learning against values computed by hand."""

import pytest
import torch

from clora_core.measure import (
    drop_per_step,
    final_alignment,
    forgetting,
    initial_alignment,
    kernel_distance,
)
from clora_core.method.recipe import Recipe
from clora_core.model.base import Fingerprint
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.museum import Exhibit, Museum
from clora_core.museum.overlap import overlap_matrix, size

A, B = Projection("a", "key", (6, 9)), Projection("b", "value", (4, 9))


def delta(shape: tuple[int, int], *, seed: int, rank: int = 2) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(shape[0], rank, generator=rng), torch.randn(rank, shape[1], generator=rng))


def exhibit(word: str, deltas: dict[Projection, LowRank]) -> Exhibit:
    return Exhibit(ConceptToken(word, {"clip_l": torch.zeros(1, 1, 4)}), deltas, Recipe())


def museum(*exhibits: Exhibit) -> Museum:
    return Museum(Fingerprint("starter", "0"), exhibits)


def test_three_concepts_by_hand():
    alignment = [[0.9, None, None], [0.7, 0.8, None], [0.5, 0.9, 0.6]]
    assert initial_alignment(alignment) == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert final_alignment(alignment) == pytest.approx((0.5 + 0.9 + 0.6) / 3)
    assert forgetting(alignment) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)


def test_the_drop_per_step_by_hand():
    alignment = [[0.9, None, None], [1.0, 0.8, None], [0.5, 0.9, 0.6]]
    assert drop_per_step(alignment) == pytest.approx(((0.9 - 1.0) + ((1.0 - 0.5) + (0.8 - 0.9)) / 2) / 2)
    assert drop_per_step([[0.4]]) == 0


def features(count: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_kernel_distance_matches_loops_over_pairs():
    x, y = features(7, seed=0), features(5, seed=1, shift=0.5)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 8 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    between = sum(k(a, b) for a in x for b in y) / (7 * 5)
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-5)


def test_the_kernel_distance_is_that_of_torchmetrics():
    peer = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    x, y = features(64, seed=0), features(64, seed=1, shift=0.3)
    assert kernel_distance(x, y) == pytest.approx(peer.poly_mmd(x, y).item(), rel=1e-4)


def test_the_kernel_distance_is_unbiased_and_grows_with_the_difference():
    same = [kernel_distance(features(64, seed=2 * i), features(64, seed=2 * i + 1)) for i in range(200)]
    mean, deviation = torch.tensor(same).mean().item(), torch.tensor(same).std().item()
    assert abs(mean) < 4 * deviation / 200**0.5
    assert min(same) < 0, "an unbiased estimate of nothing is below zero about half of the time"
    apart = [kernel_distance(features(64, seed=1), features(64, seed=2, shift=by)) for by in (0.2, 0.5, 1.0)]
    assert apart == sorted(apart) and apart[0] > mean


def test_a_single_feature_has_no_distance():
    with pytest.raises(ValueError, match="1 and 5"):
        kernel_distance(features(1, seed=0), features(5, seed=0))


def test_one_concept_forgets_nothing():
    assert forgetting([[0.4]]) == 0
    assert initial_alignment([[0.4]]) == final_alignment([[0.4]]) == 0.4


def test_forgetting_is_below_zero_where_later_learning_helped():
    assert forgetting([[0.2, None], [0.5, 0.5]]) == pytest.approx(-0.3)


@pytest.mark.parametrize("measure", [initial_alignment, final_alignment, forgetting])
def test_a_gap_in_the_matrix_is_refused(measure):
    with pytest.raises(ValueError, match="needs a value for every concept"):
        measure([[None, None], [None, 0.3]])


def test_the_overlap_matrix_matches_dense_loops():
    museums = museum(
        exhibit("<one>", {A: delta((6, 9), seed=0), B: delta((4, 9), seed=1)}),
        exhibit("<two>", {A: delta((6, 9), seed=2, rank=3)}),
        exhibit("<three>", {B: delta((4, 9), seed=3)}),
    )

    def product(one: Exhibit, other: Exhibit) -> float:
        total = 0.0
        for place in (A, B):
            if place in one.deltas and place in other.deltas:
                rows = zip(one.deltas[place].dense().tolist(), other.deltas[place].dense().tolist(), strict=True)
                total += sum(abs(x) * abs(y) for row_x, row_y in rows for x, y in zip(row_x, row_y, strict=True))
        return total

    matrix = overlap_matrix(museums)
    for i, one in enumerate(museums.exhibits):
        for j, other in enumerate(museums.exhibits):
            cosine = product(one, other) / (product(one, one) * product(other, other)) ** 0.5
            assert matrix[i, j].item() == pytest.approx(cosine, abs=1e-5)
    assert matrix[1, 2] == 0, "they share no projection"
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3))


def test_overlap_neither_sees_size_nor_sign():
    one, other = delta((6, 9), seed=0), delta((6, 9), seed=1)
    plain = overlap_matrix(museum(exhibit("<one>", {A: one}), exhibit("<two>", {A: other})))
    changed = overlap_matrix(museum(exhibit("<one>", {A: one.scaled(-50)}), exhibit("<two>", {A: other.scaled(1e-3)})))
    torch.testing.assert_close(plain, changed)


def test_an_empty_museum_has_an_empty_overlap_matrix():
    assert overlap_matrix(museum()).shape == (0, 0)


def test_the_size_is_the_norm_over_all_projections():
    one = exhibit("<one>", {A: delta((6, 9), seed=0), B: delta((4, 9), seed=1)})
    entries = torch.cat([matrix.dense().flatten() for matrix in one.deltas.values()])
    assert size(one) == pytest.approx(entries.norm().item(), rel=1e-5)
    assert size(exhibit("<word>", {})) == 0
