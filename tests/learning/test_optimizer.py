"""Updates are those of AdamW, with the recipe's accumulation, clipping and warm-up."""

import math

import pytest
import torch
from torch import Tensor

from clora_core.learning.learn import Progress
from clora_core.learning.lesson import Lesson
from clora_core.learning.optimizer import Optimizer, learning_rate_factor
from clora_core.learning.start import Trained, start
from clora_core.method.objective import diffusion_loss
from clora_core.method.recipe import Recipe
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.museum.museum import Museum
from tests.small import C_LORA, museum_of, same_bits, short, small_concept, taught, tensors_of

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def gradients(base: Base, recipe: Recipe, *batches: int) -> dict[str, Tensor]:
    """The gradients that these batches give new factors, with up and down both random."""
    concept = small_concept()
    lesson, trained = Lesson.prepared(base, concept, recipe), started(base, recipe)
    optimizer = Optimizer(trained, recipe, base.device, torch.float32)
    with base.learning(precision="fp32", checkpointing=False), attached(base, trained.deltas):
        for number in batches:
            optimizer.gather(diffusion_loss(lesson.step(number, trained), base.schedule))
    return {name: value.grad.clone() for name, value in trained.parameters().items()}


def started(base: Base, recipe: Recipe) -> Trained:
    trained = start(base, [small_concept()], recipe, Museum(base.fingerprint))
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for delta in trained.deltas.values():
            delta.up.copy_(0.05 * torch.randn(delta.up.shape, generator=rng))
    return trained


def first_moments(base: Base, recipe: Recipe) -> dict[str, Tensor]:
    """The gradients of a learning's first update, after clipping, from AdamW's first moments."""
    reports: list[dict[str, Tensor]] = []

    def report(progress: Progress) -> None:
        if progress.step == 1:
            reports.append(dict(progress.snapshot().tensors))

    taught(base, Museum(base.fingerprint), small_concept(), recipe, report=report)
    moments = {name: value for name, value in reports[0].items() if name.endswith(".exp_avg")}
    return {name: value / (1 - BETA_1) for name, value in moments.items()}


def norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(value.double().square().sum().item() for value in tensors.values()))


def test_accumulation_averages_the_gradients_of_its_batches(base: Base):
    together = gradients(base, short(accumulation=2), 0, 1)
    one, other = gradients(base, short(), 0), gradients(base, short(), 1)
    for name, value in together.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-4, atol=1e-8)
        assert not torch.allclose(one[name], other[name], rtol=1e-2)


def test_accumulation_takes_batches_in_order_and_updates_once(base: Base):
    reports: list[Progress] = []
    recipe = short(C_LORA, steps=2, accumulation=2)
    taught(base, Museum(base.fingerprint), small_concept(), recipe, report=reports.append)
    assert [progress.step for progress in reports] == [1, 2]
    concept, trained = small_concept(), start(base, [small_concept()], recipe, Museum(base.fingerprint))
    lesson = Lesson.prepared(base, concept, recipe)
    with torch.no_grad():
        losses = [diffusion_loss(lesson.step(number, trained), base.schedule).item() for number in (0, 1)]
    assert reports[0].losses["diffusion"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_accumulation_changes_the_result(base: Base):
    plain = museum_of(base, "<one>", recipe=short())
    assert not same_bits(plain, museum_of(base, "<one>", recipe=short(accumulation=2)))


def test_an_update_matches_adamw_computed_by_hand(base: Base):
    """Two updates written out, with decay on the factors but none on the word."""
    recipe = short(weight_decay=0.3, learning_rate=0.01, token_learning_rate=0.02, clip_norm=1e9, schedule="linear")
    trained = start(base, [small_concept()], recipe, Museum(base.fingerprint))
    expected = {name: value.detach().double().clone() for name, value in trained.parameters().items()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = Optimizer(trained, recipe, base.device, torch.float32)
    rng = torch.Generator().manual_seed(0)
    for index in range(2):
        for name, parameter in trained.parameters().items():
            gradient = torch.randn(parameter.shape, generator=rng)
            parameter.grad = gradient.clone()
            word = name.startswith("token.")
            rate = (0.02 if word else 0.01) * (1 - index / 3)
            first[name] = BETA_1 * first[name] + (1 - BETA_1) * gradient.double()
            second[name] = BETA_2 * second[name] + (1 - BETA_2) * gradient.double() ** 2
            expected[name] *= 1 - rate * (0.0 if word else 0.3)
            step = first[name] / (1 - BETA_1 ** (index + 1))
            expected[name] -= rate * step / ((second[name] / (1 - BETA_2 ** (index + 1))).sqrt() + EPSILON)
        assert optimizer.update(index)
        assert all(parameter.grad is None for parameter in trained.parameters().values())
    for name, parameter in trained.parameters().items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_norm_of_the_gradient_is_limited_to_clip_norm(base: Base):
    whole = first_moments(base, short(clip_norm=1e9, steps=1))
    length = norm(whole)
    clipped = first_moments(base, short(clip_norm=length / 7, steps=1))
    assert norm(clipped) == pytest.approx(length / 7, rel=1e-3)
    for name, value in whole.items():
        torch.testing.assert_close(clipped[name], value / 7, rtol=1e-3, atol=1e-9)
    barely = first_moments(base, short(clip_norm=length * 1.01, steps=1))
    assert all(torch.equal(barely[name], value) for name, value in whole.items())


def test_float16_stops_if_no_loss_scale_makes_the_gradient_finite(base: Base):
    trained = started(base, short())
    before = {name: value.detach().clone() for name, value in trained.parameters().items()}
    optimizer = Optimizer(trained, short(), base.device, torch.float16)
    scale, updates = optimizer.scaler.get_scale(), 0
    while True:
        optimizer.gather(sum(value.sum() * torch.inf for value in trained.parameters().values()))
        if not optimizer.update(updates):
            break
        updates += 1
    assert updates == math.log2(scale), "the scale is halved after each, down to 1"
    assert all(torch.equal(value.detach(), before[name]) for name, value in trained.parameters().items())


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_learning_rates_match_their_formulas(warmup: float):
    steps = 20
    warm = round(warmup * steps)
    for schedule, formula in (
        ("constant", lambda done: 1.0),
        ("linear", lambda done: 1 - done),
        ("cosine", lambda done: math.cos(math.pi * done / 2) ** 2),
    ):
        recipe = Recipe(steps=steps, schedule=schedule, warmup=warmup)
        for index in range(steps):
            expected = (index + 1) / warm if index < warm else formula((index - warm) / (steps - warm))
            assert learning_rate_factor(recipe, index) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_learning_rates_are_above_zero_and_at_most_the_full_rate(schedule: str, steps: int, warmup: float):
    recipe = Recipe(steps=steps, schedule=schedule, warmup=warmup)
    factors = [learning_rate_factor(recipe, index) for index in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1 or warmup == 0.3


def test_both_learning_rates_follow_the_schedule_independently(base: Base):
    """The first step of Adam changes every entry by its rate, so the change gives the rate."""
    for rates in (
        {"learning_rate": 1e-3, "token_learning_rate": 7e-3},
        {"learning_rate": 4e-3, "token_learning_rate": 1e-3},
    ):
        for warmup, factor in ((0.0, 1.0), (1.0, 1 / 4)):
            recipe = short(steps=4, clip_norm=1e9, warmup=warmup, **rates)
            before = start(base, [small_concept()], recipe, Museum(base.fingerprint)).parameters()
            moved: dict[str, float] = {}

            def report(progress: Progress, before: dict = before, moved: dict = moved) -> None:
                if progress.step == 1:
                    for name, value in progress.trained.parameters().items():
                        moved[name] = (value.detach() - before[name].detach()).abs().max().item()

            taught(base, Museum(base.fingerprint), small_concept(), recipe, report=report)
            for name, largest in moved.items():
                rate = rates["token_learning_rate"] if name.startswith("token.") else rates["learning_rate"]
                expected = 0.0 if name.endswith(".down") else rate * factor
                assert largest == pytest.approx(expected, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_in_half_precision_are_finite_and_close_to_float32(base: Base, precision: str):
    losses: dict[str, list[float]] = {"fp32": [], precision: []}
    for name, found in losses.items():
        museum = museum_of(base, "<one>")
        recipe = short(C_LORA, precision=name)
        museum = taught(
            base, museum, small_concept("<two>", seed=1), recipe, report=lambda p, found=found: found.append(p.loss)
        )
        tensors = tensors_of(museum)
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in tensors.values())
        assert all(delta.norm() > 0 for delta in museum.exhibits[1].deltas.values())
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses[precision] != losses["fp32"], "it computes in another precision"


def test_checkpointing_gives_the_same_deltas(base: Base):
    plain, saving = (museum_of(base, "<one>", recipe=short(checkpointing=wish)) for wish in (False, True))
    theirs = tensors_of(saving)
    for name, value in tensors_of(plain).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)
