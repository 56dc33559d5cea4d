"""MuseumMaker's terms against naive references, and the whole recipe."""

import math

import pytest
import torch
from torch import Tensor

from clora_core.errors import RecipeError
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import start
from clora_core.method.objective import diffusion_loss
from clora_core.method.recipe import Recipe, recipe_named
from clora_core.method.regularizers import StyleDistillation, WeightDirection
from clora_core.method.regularizers.style_distillation import divergence
from clora_core.method.step import Past
from clora_core.model.base import Base
from clora_core.model.concept import Concept
from clora_core.model.low_rank import LowRank
from clora_core.museum.museum import Museum, viewing
from tests.small import (
    LATENT_SHAPE,
    bits,
    museum_of,
    predictions,
    random_deltas,
    setting_with,
    short,
    small_base,
    small_concept,
    step_with,
    taught,
    tensors_of,
)


def naive_divergence(sample: Tensor, reference: Tensor, temperature: float) -> float:
    """KL by its definition, number by number, in Python's own floats."""
    ones = [math.exp(value / temperature) for value in sample.flatten().tolist()]
    others = [math.exp(value / temperature) for value in reference.flatten().tolist()]
    one, other = math.fsum(ones), math.fsum(others)
    return math.fsum(a / one * math.log(a / one * other / b) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_matches_its_definition(temperature: float):
    rng = torch.Generator().manual_seed(0)
    sample, reference = (torch.randn(3, 4, 5, 6, generator=rng) for _ in range(2))
    found = divergence(sample, reference, temperature=temperature)
    expected = [naive_divergence(a, b, temperature) for a, b in zip(sample, reference, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert divergence(sample, sample, temperature=temperature).abs().max() < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_the_clean_latents(prediction: str):
    schedule = small_base(prediction).schedule
    rng = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(4, *LATENT_SHAPE, generator=rng) for _ in range(2))
    times = torch.tensor([0, 200, 600, 900])
    noisy, target = schedule.noised(latents, noise, times), schedule.target(latents, noise, times)
    torch.testing.assert_close(schedule.clean(noisy, target, times), latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("of", "temperature"), [("picture", 1.5), ("noise", 0.05)])
def test_style_distillation_matches_its_equation(of: str, temperature: float, base: Base):
    concept, recipe = small_concept(), short()
    lesson, trained = Lesson.prepared(base, concept, recipe), start(base, [concept], recipe, Museum(base.fingerprint))
    mean = lesson.buckets[0].latents[0].mean(0)
    setting = setting_with(Past(), base=base, latents=lesson.buckets[0].latents[0])
    with base.learning(precision="fp32", checkpointing=False):
        step = lesson.step(0, trained)
        value = StyleDistillation(2.0, temperature, of).begin(setting)(step)
        expected = []
        for row, time in enumerate(step.timesteps.tolist()):
            alpha = base.schedule.levels[time].item()
            picture, noise = step.latents[row], step.noise[row]
            predicted = step.prediction[row].detach()
            if of == "picture":
                noisy = alpha**0.5 * picture + (1 - alpha) ** 0.5 * noise
                clean = alpha**0.5 * noisy - (1 - alpha) ** 0.5 * predicted
                expected.append(alpha * naive_divergence(clean, mean, temperature))
            else:
                noisy = alpha**0.5 * mean + (1 - alpha) ** 0.5 * noise
                with torch.no_grad():
                    other = base.predict(noisy[None], torch.tensor([time]), step.conditioning[slice(row, row + 1)])
                expected.append(naive_divergence(predicted, other[0], temperature))
        assert value.item() == pytest.approx(2 * sum(expected) / len(expected), rel=1e-3)
        value.backward()
    assert all(vectors.grad.abs().max() > 0 for vectors in trained.token(concept.word).vectors.values())


def test_weight_direction_is_one_minus_the_cosine_of_the_dense_matrices(base: Base):
    before, now = random_deltas(base, seed=1), random_deltas(base, seed=2)
    setting = setting_with(Past(shared=before))
    flat = [(before[p].dense().flatten(), now[p].dense().flatten()) for p in base.slots]
    expected = sum(1 - torch.dot(a, b) / (a.norm() * b.norm()) for a, b in flat) / len(flat)
    term = WeightDirection(3.0).begin(setting)
    assert term(step_with(now)).item() == pytest.approx(3 * expected.item(), rel=1e-4)
    longer = {p: LowRank(5 * delta.up, delta.down) for p, delta in before.items()}
    assert term(step_with(longer)).item() == pytest.approx(0, abs=1e-5), "the length is free"
    assert WeightDirection().begin(setting_with(Past()))(step_with(now)).item() == 0


def test_weight_direction_keeps_a_shared_delta_from_turning(base: Base):
    museum = taught(base, Museum(base.fingerprint), small_concept("<old>"), short(over="shared", steps=6))
    turned = {}
    for weight in (0.0, 1000.0):
        recipe = short(WeightDirection(weight), over="shared", steps=10, clip_norm=1000.0)
        after = taught(base, museum, small_concept("<new>", seed=4), recipe).dense()
        before = museum.dense()
        cosines = [torch.cosine_similarity(after[p].flatten(), before[p].flatten(), dim=0) for p in before]
        turned[weight] = 1 - sum(float(value) for value in cosines) / len(cosines)
    assert turned[1000.0] < 0.3 * turned[0.0]


def test_the_recipe_learns_one_style_after_another(base: Base):
    answers = predictions(base)
    recipe = recipe_named("museum-maker", rank=2, steps=3, batch_size=2, learning_rate=1e-2)
    museum = museum_of(base, "<one>", "<two>", recipe=recipe)
    again = museum_of(base, "<one>", "<two>", recipe=recipe)
    assert bits(tensors_of(museum)) == bits(tensors_of(again))
    assert [exhibit.rank for exhibit in museum.exhibits] == [2, 4]
    assert {vectors.shape[0] for exhibit in museum.exhibits for vectors in exhibit.token.vectors.values()} == {6}
    assert torch.equal(predictions(base), answers)
    concept = Concept("<three>", small_concept().pictures, kind="style")
    losses: list[dict] = []
    taught(base, museum, concept, recipe, report=lambda progress: losses.append(dict(progress.losses)))
    assert set(losses[0]) == {"diffusion", "style_distillation", "weight_direction", "distillation"}
    assert losses[0]["weight_direction"] == pytest.approx(0, abs=1e-6) and losses[0]["distillation"] < 1e-10
    assert losses[-1]["weight_direction"] > 0 and losses[-1]["distillation"] > 0


def test_a_shared_delta_continues_from_the_museum(base: Base):
    """Also with layer-wise words, and with a teacher that uses the earlier shared delta."""
    recipe = recipe_named("museum-maker", rank=2, steps=1, batch_size=2, learning_rate=1e-2)
    museum = museum_of(base, "<one>", recipe=recipe)
    concept, losses = small_concept("<two>", seed=5), []
    taught(base, museum, concept, recipe, report=lambda progress: losses.append(progress.losses["diffusion"]))
    with viewing(base, museum.dense()), torch.no_grad():
        step = Lesson.prepared(base, concept, recipe).step(0, start(base, [concept], recipe, museum))
        assert losses == pytest.approx([diffusion_loss(step, base.schedule).item()], rel=1e-5)


@pytest.mark.parametrize("numbers", [{"temperature": 0.0}, {"of": "layout"}])
def test_invalid_settings_are_refused(numbers: dict):
    with pytest.raises(RecipeError):
        StyleDistillation(**numbers)


def test_the_recipe_survives_json():
    recipe = recipe_named("museum-maker")
    assert Recipe.from_json(recipe.to_json()) == recipe
