"""What is said of a museum in numbers is what one would compute by hand."""

import pytest
import torch

from clora_core.base import Fingerprint
from clora_core.concept import ConceptToken
from clora_core.low_rank import LowRank
from clora_core.measure import forgetting, kept, learned, overlap_matrix, size
from clora_core.museum import Exhibit, Museum
from clora_core.projections import Projection
from clora_core.recipe import Recipe

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
    assert learned(alignment) == pytest.approx((0.9 + 0.8 + 0.6) / 3)
    assert kept(alignment) == pytest.approx((0.5 + 0.9 + 0.6) / 3)
    assert forgetting(alignment) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)


def test_one_concept_forgets_nothing():
    assert forgetting([[0.4]]) == 0
    assert learned([[0.4]]) == kept([[0.4]]) == 0.4


def test_forgetting_is_below_zero_where_later_learning_helped():
    assert forgetting([[0.2, None], [0.5, 0.5]]) == pytest.approx(-0.3)


@pytest.mark.parametrize("measure", [learned, kept, forgetting])
def test_a_hole_in_the_matrix_is_said(measure):
    with pytest.raises(ValueError, match="knows every concept"):
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
