"""C-LoRA's penalty is equation (3) of the paper, with its analytic gradient and the documented weight."""

import pytest
import torch
from torch import Tensor

from clora_core.method.regularizers import RowOverlap
from clora_core.method.regularizers.self_regularization import (
    LowRankOverlap,
    SelfRegularization,
    relative_weight,
)
from clora_core.method.step import Past
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from tests.small import setting_with, step_with


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def projection(name: str, rows: int, columns: int) -> Projection:
    return Projection(name, "key", (rows, columns))


def papers_overlap(past: Tensor, delta: Tensor) -> float:
    """Equation (3) literally: the square of the Frobenius norm of |past| ∘ delta."""
    total = 0.0
    for past_row, delta_row in zip(past.tolist(), delta.tolist(), strict=True):
        for p, d in zip(past_row, delta_row, strict=True):
            total += (abs(p) * d) ** 2
    return total


def low_rank(rows: int, columns: int, *, rank: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> LowRank:
    up, down = random(rows, rank, seed=seed, dtype=dtype), random(rank, columns, seed=seed + 100, dtype=dtype)
    return LowRank(up.requires_grad_(), down.requires_grad_())


def overlap(past: Tensor, delta: LowRank) -> Tensor:
    return LowRankOverlap.apply(past, delta.up, delta.down)


def penalty(past: dict, deltas: dict, regularizer: SelfRegularization, *, reference_loss: float = 1.0) -> Tensor:
    return regularizer.begin(setting_with(Past(total=past), reference_loss=reference_loss))(step_with(deltas))


def test_overlap_matches_a_loop_over_the_papers_equation():
    past, delta = random(6, 9), low_rank(6, 9)
    assert overlap(past, delta).item() == pytest.approx(papers_overlap(past, delta.dense()), rel=1e-5)
    assert overlap(-past, delta).item() == overlap(past, delta).item() == overlap(past, delta.scaled(-1)).item()


def test_the_gradient_of_overlap_matches_its_formula():
    past, delta = random(6, 9), low_rank(6, 9)
    overlap(past, delta).backward()
    moved = (2 * past**2 * delta.dense()).detach()
    torch.testing.assert_close(delta.up.grad, moved @ delta.down.detach().T)
    torch.testing.assert_close(delta.down.grad, delta.up.detach().T @ moved)


def test_the_gradient_of_overlap_matches_autograd_on_the_dense_norm():
    past, ours, theirs = random(6, 9), low_rank(6, 9), low_rank(6, 9)
    (3 * overlap(past, ours)).backward()
    (3 * torch.linalg.matrix_norm(past.abs() * theirs.dense()) ** 2).backward()
    torch.testing.assert_close(ours.up.grad, theirs.up.grad)
    torch.testing.assert_close(ours.down.grad, theirs.down.grad)


def test_the_gradient_of_overlap_matches_finite_differences():
    # overlap works in float32; eq. (3) is a polynomial of degree two in each factor, for which a central difference
    # with a wide step is exact, so that rounding alone is left.
    past, delta = random(4, 5), low_rank(4, 5, rank=2)
    overlap(past, delta).backward()
    up, down, wide = delta.up.detach().double(), delta.down.detach().double(), 0.5
    for place in [(0, 0), (1, 1), (3, 0)]:
        nudge = torch.zeros_like(up)
        nudge[place] = wide
        above = papers_overlap(past.double(), (up + nudge) @ down)
        below = papers_overlap(past.double(), (up - nudge) @ down)
        assert delta.up.grad[place].item() == pytest.approx((above - below) / (2 * wide), rel=1e-4)
    for place in [(0, 0), (1, 4), (0, 3)]:
        nudge = torch.zeros_like(down)
        nudge[place] = wide
        above = papers_overlap(past.double(), up @ (down + nudge))
        below = papers_overlap(past.double(), up @ (down - nudge))
        assert delta.down.grad[place].item() == pytest.approx((above - below) / (2 * wide), rel=1e-4)


def test_the_past_gets_no_gradient_from_overlap():
    past, delta = random(6, 9).requires_grad_(), low_rank(6, 9)
    overlap(past, delta).backward()
    assert past.grad is None
    assert delta.up.grad.abs().min() > 0


@pytest.mark.parametrize("regularizer", [SelfRegularization(), SelfRegularization(1e8, relative=False)])
def test_the_penalty_of_an_empty_museum_is_zero(regularizer: SelfRegularization):
    delta = low_rank(6, 9)
    cost = penalty({}, {projection("a", 6, 9): delta}, regularizer)
    assert cost.item() == 0.0 and cost.dtype == torch.float32


def test_an_empty_museum_needs_no_reference_loss():
    def measured() -> float:
        raise AssertionError("there is no past to weigh the penalty by")

    setting = setting_with(Past())
    object.__setattr__(setting, "measure_reference_loss", measured)
    assert SelfRegularization().begin(setting)(step_with({})).item() == 0.0


def test_the_absolute_weight_multiplies_the_sum_over_all_projections():
    a, b = projection("a", 6, 9), projection("b", 4, 9)
    past = {a: random(6, 9), b: random(4, 9, seed=1)}
    deltas = {a: low_rank(6, 9), b: low_rank(4, 9, seed=2)}
    expected = sum(papers_overlap(past[place], deltas[place].dense()) for place in (a, b))
    cost = penalty(past, deltas, SelfRegularization(12.5, relative=False))
    assert cost.item() == pytest.approx(12.5 * expected, rel=1e-5)


def test_projections_that_no_earlier_concept_changed_have_no_penalty():
    a, b = projection("a", 6, 9), projection("b", 4, 9)
    deltas = {a: low_rank(6, 9), b: low_rank(4, 9, seed=2)}
    past = {a: random(6, 9)}
    penalty(past, deltas, SelfRegularization(1.0, relative=False)).backward()
    assert deltas[a].up.grad.abs().max() > 0
    assert deltas[b].up.grad is None or not deltas[b].up.grad.any()


def test_kappa_one_makes_an_unrelated_delta_cost_the_reference_loss():
    shapes = {projection("a", 300, 400): 0.02, projection("b", 150, 400): 0.05}
    past, deltas = {}, {}
    for seed, (place, scale) in enumerate(shapes.items()):
        past[place] = scale * random(*place.shape, seed=seed)
        dense = scale * random(*place.shape, seed=seed + 10)
        deltas[place] = LowRank(dense, torch.eye(place.shape[1]))
    assert penalty(past, deltas, SelfRegularization(), reference_loss=0.7).item() == pytest.approx(0.7, rel=0.03)
    assert penalty(past, deltas, SelfRegularization(3.0), reference_loss=0.7).item() == pytest.approx(2.1, rel=0.03)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 20.0])
def test_the_effect_of_kappa_does_not_depend_on_the_scale_of_deltas(scale: float):
    place = projection("a", 30, 40)
    past, delta = random(30, 40), low_rank(30, 40)
    cost = penalty({place: past}, {place: delta}, SelfRegularization(2.0), reference_loss=0.5)
    scaled = penalty({place: scale * past}, {place: delta.scaled(scale)}, SelfRegularization(2.0), reference_loss=0.5)
    assert scaled.item() == pytest.approx(cost.item(), rel=1e-4)


def test_the_relative_weight_matches_its_equation():
    past = [random(6, 9), 0.1 * random(4, 9, seed=1)]
    scale = 0.0
    for matrix in past:
        squares = [value**2 for row in matrix.double().tolist() for value in row]
        rms = (sum(squares) / len(squares)) ** 0.5
        scale += len(squares) * rms**4
    assert relative_weight(3.0, 0.25, past) == pytest.approx(3.0 * 0.25 / scale, rel=1e-5)


def test_the_penalty_of_a_zero_past_is_zero():
    place = projection("a", 6, 9)
    assert relative_weight(1.0, 0.5, [torch.zeros(6, 9)]) == 0.0
    assert penalty({place: torch.zeros(6, 9)}, {place: low_rank(6, 9)}, SelfRegularization()).item() == 0.0


def test_overlap_of_factors_passes_gradcheck():
    past, delta = random(4, 5, dtype=torch.float64), low_rank(4, 5, rank=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda up, down: LowRankOverlap.apply(past, up, down), (delta.up, delta.down))


def test_with_squares_opposite_deltas_do_not_cancel():
    place, old = projection("a", 6, 9), low_rank(6, 9, seed=5)
    opposite = LowRank(-old.up.detach(), old.down.detach())
    earlier, new = [{place: LowRank(old.up.detach(), old.down.detach())}, {place: opposite}], {place: low_rank(6, 9)}
    past = {place: torch.zeros(6, 9)}
    setting = setting_with(Past(total=past, deltas=earlier))
    assert SelfRegularization(relative=False).begin(setting)(step_with(new)).item() == 0
    found = SelfRegularization(2.0, relative=False, squares=True).begin(setting)(step_with(new)).item()
    naive = sum(
        (2 * p**2) * d**2
        for p, d in zip(
            old.dense().flatten().tolist(),
            new[place].dense().flatten().tolist(),
            strict=True,
        )
    )
    assert found == pytest.approx(2 * naive, rel=1e-5)


def test_with_squares_one_earlier_delta_has_the_papers_penalty():
    place, old = projection("a", 6, 9), low_rank(6, 9, seed=5)
    past = {place: old.dense().detach()}
    setting = setting_with(Past(total=past, deltas=[{place: old}]))
    found = [
        SelfRegularization(squares=s).begin(setting)(step_with({place: low_rank(6, 9)})).item() for s in (False, True)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_row_overlap_is_the_norm_of_the_dense_product_times_its_weight():
    place, wide = projection("a", 6, 9), projection("b", 12, 9)
    past = {place: random(6, 9, seed=2), wide: random(12, 9, seed=3)}
    new = {place: low_rank(6, 9), wide: low_rank(12, 9, seed=4)}
    scale = sum(float(torch.linalg.matrix_norm(matrix)) ** 4 / 9 for matrix in past.values())
    products = [torch.linalg.matrix_norm(past[key] @ new[key].dense().T).item() ** 2 for key in past]
    cost = RowOverlap(3.0).begin(setting_with(Past(total=past), reference_loss=0.5))(step_with(new))
    assert cost.item() == pytest.approx(3 * 0.5 * sum(products) / scale, rel=1e-4)
    unrelated = [  # random, with the norm of the past
        {key: LowRank(value / value.norm() * past[key].norm(), torch.eye(9)) for key, value in dense.items()}
        for dense in ({place: random(6, 9, seed=s), wide: random(12, 9, seed=s + 500)} for s in range(10, 210))
    ]
    term = RowOverlap().begin(setting_with(Past(total=past), reference_loss=0.5))
    mean = sum(term(step_with(deltas)).item() for deltas in unrelated) / len(unrelated)
    assert mean == pytest.approx(0.5, rel=0.05)


def test_row_overlap_is_zero_for_a_delta_in_orthogonal_directions():
    place = projection("a", 6, 9)
    basis = torch.linalg.qr(random(9, 9)).Q
    past = {place: random(6, 4, seed=1) @ basis[:4]}
    new = {place: LowRank(random(6, 2, seed=2), random(2, 5, seed=3) @ basis[4:])}
    assert RowOverlap().begin(setting_with(Past(total=past)))(step_with(new)).item() < 1e-10
    assert RowOverlap().begin(setting_with(Past()))(step_with(new)).item() == 0
