"""The past gives the same penalties, gradients and museums as low-rank factors and as whole matrices."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from clora_core.method.recipe import recipe_named
from clora_core.method.regularizers import Regularizer, RowOverlap, SelfRegularization, self_regularization
from clora_core.method.regularizers.self_regularization import blocks
from clora_core.method.step import Past
from clora_core.model.attach import attached
from clora_core.model.families import find_projections
from clora_core.model.low_rank import LowRank, Matrix, compact, compact_values, concatenated, without
from clora_core.model.projections import Projection
from clora_core.museum import museum as museum_module
from clora_core.museum.museum import Museum
from tests.families import REAL, build_unet
from tests.small import (
    LATENT_SHAPE,
    museum_of,
    quick_fisher_information,
    random_deltas,
    setting_with,
    short,
    small_base,
    small_concept,
    step_with,
    taught,
    tensors_of,
)

PLACES = [Projection("a", "key", (70, 90)), Projection("b", "value", (50, 90))]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deltas(seed: int, *, rank: int = 3) -> dict[Projection, LowRank]:
    return {
        place: LowRank(random(place.shape[0], rank, seed=seed + number), random(rank, place.shape[1], seed=-seed - 9))
        for number, place in enumerate(PLACES)
    }


def trained() -> dict[Projection, LowRank]:
    return {
        place: LowRank(delta.up.requires_grad_(), delta.down.requires_grad_()) for place, delta in deltas(50).items()
    }


@pytest.mark.parametrize("exhibits", [1, 4])
@pytest.mark.parametrize("regularizer", [SelfRegularization(), SelfRegularization(squares=True), RowOverlap()])
def test_penalties_and_gradients_match_those_of_whole_matrices(
    regularizer: Regularizer, exhibits: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(self_regularization, "BLOCK", 90 * 32)  # three blocks, the last one smaller
    earlier = [deltas(seed) for seed in range(10, 10 + exhibits)]
    factors: dict[Projection, Matrix] = {place: concatenated([own[place] for own in earlier]) for place in PLACES}
    whole: dict[Projection, Matrix] = {place: sum(own[place].dense() for own in earlier) for place in PLACES}
    values, gradients = [], []
    for total in (factors, whole):
        new = trained()
        value = regularizer.begin(setting_with(Past(total=total, deltas=earlier)))(step_with(new))
        value.backward()
        values.append(value.detach())
        gradients.append([factor.grad for delta in new.values() for factor in (delta.up, delta.down)])
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_the_past_is_multiplied_out_in_blocks_of_limited_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_regularization, "BLOCK", 1000)
    earlier = [deltas(seed)[PLACES[0]] for seed in (1, 2)]
    parts = list(blocks(earlier))
    assert max(block.numel() for _, block in parts) <= 1000
    squares = sum(delta.dense().square() for delta in earlier)
    torch.testing.assert_close(torch.cat([block for _, block in parts]), squares.sqrt())


def test_a_matrix_is_held_in_the_form_that_takes_less_memory():
    up, down = random(70, 40, seed=1), random(40, 90, seed=2)
    for rank in (1, 39, 40):
        delta = LowRank(up[:, :rank].bfloat16(), down[:rank].bfloat16())
        held, few = compact(delta), rank * 160 < 70 * 90
        assert isinstance(held, LowRank) == few
        assert compact_values(delta.shape, rank) == (rank * 160 if few else 70 * 90)
        dense = held.dense() if isinstance(held, LowRank) else held
        assert torch.equal(dense, delta.up.float() @ delta.down.float())
    assert isinstance(compact(LowRank(up[:, :1], down[:1]), whole=70 * 90), Tensor)


def test_subtracting_keeps_the_form():
    one, other = deltas(1)[PLACES[0]], deltas(2)[PLACES[0]]
    expected = one.dense() - other.dense()
    left = without(one, other)
    assert isinstance(left, LowRank)
    torch.testing.assert_close(left.dense(), expected)
    assert torch.equal(without(one.dense(), other), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", REAL)
def test_every_unet_keeps_its_past_as_whole_matrices(family: str):
    """So what they learn does not depend on the form, not even in rounding."""
    with torch.device("meta"):
        places = find_projections(build_unet(family, REAL[family]))
    assert max(place.shape[0] * place.shape[1] for place in places) <= museum_module.WHOLE


@pytest.mark.parametrize(
    "method", ["preservation", "c-lora", "c-lora-squares", "c-lora-rows", "ewc-lora", "museum-maker"]
)
def test_learning_over_factors_gives_the_same_museum_within_rounding(method: str, monkeypatch: pytest.MonkeyPatch):
    """By the norm of each tensor: Adam divides a gradient by its own size, so one near zero shows its rounding. How
    far rounding goes is measured with weights of the network that differ in their last bits."""
    recipe = recipe_named(method)
    usual = {name: getattr(short(), name) for name in ("steps", "batch_size", "learning_rate", "token_learning_rate")}
    recipe = dataclasses.replace(recipe, rank=min(2, recipe.rank), **usual)
    found = []
    for whole, scale in ((museum_module.WHOLE, 1.0), (0, 1.0), (museum_module.WHOLE, 1 + 1e-7)):
        base = small_base()
        for weight in base.unet.parameters():
            weight.data *= scale
        monkeypatch.setattr(museum_module, "WHOLE", whole)
        with quick_fisher_information():
            found.append(tensors_of(museum_of(base, "<one>", "<two>", recipe=recipe)))
    one, other, rounded = found

    def apart(tensors: Mapping[str, Tensor]) -> float:
        return max(float((tensors[name] - value).norm() / value.norm()) for name, value in one.items())

    assert apart(other) <= 4 * apart(rounded) < 0.02


def test_the_network_predicts_the_same_with_either_form():
    base, held = small_base(), random_deltas(small_base(), rank=4)
    latents = random(2, *LATENT_SHAPE, seed=1)
    outputs = []
    for form in (held, {place: delta.dense() for place, delta in held.items()}):
        states = base.encode_prompts(["a red cat", ""], [])
        read = states.states.requires_grad_()
        with attached(base, form):
            predicted = base.predict(latents, torch.tensor([20, 700]), states)
        predicted.square().sum().backward()
        outputs.append((predicted.detach(), read.grad))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_learning_continues_over_a_museum_from_inference_mode(monkeypatch: pytest.MonkeyPatch):
    """As ComfyUI runs the nodes that load and learn museums."""
    monkeypatch.setattr(museum_module, "WHOLE", 0)
    base = small_base()
    with torch.inference_mode():
        first = museum_of(base, "<one>")
        (only,) = first.exhibits
        held = {place: LowRank(delta.up.clone(), delta.down.clone()) for place, delta in only.deltas.items()}
        first = Museum(first.base, (dataclasses.replace(only, deltas=held),))
        taught(base, first, small_concept("<two>", seed=1), short(SelfRegularization(), RowOverlap()))


def test_compact_and_dense_sums_of_a_museum_are_equal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(museum_module, "WHOLE", 0)
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    assert isinstance(museum, Museum)
    dense, held = museum.dense(), museum.compact()
    assert {type(matrix) for matrix in held.values()} == {LowRank}
    for place, matrix in held.items():
        torch.testing.assert_close(matrix.dense(), dense[place])
