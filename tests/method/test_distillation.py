"""Distillation keeps the predictions for earlier words as they were before the new concept."""

from dataclasses import replace

import pytest
import torch

from clora_core.errors import RecipeError
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import start
from clora_core.method.recipe import Recipe
from clora_core.method.regularizers import Distillation
from clora_core.method.step import Past
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.museum.museum import Museum, viewing
from tests.small import museum_of, random_deltas, setting_with, short, small_concept, taught

PROMPT = "a photo of <old>"


def test_the_term_is_the_mean_square_change_of_the_predictions(base: Base):
    museum, concept, recipe = museum_of(base, "<old>"), small_concept("<new>"), short()
    lesson, trained = Lesson.prepared(base, concept, recipe), start(base, [concept], recipe, Museum(base.fingerprint))
    deltas = random_deltas(base)
    with base.learning(precision="fp32", checkpointing=False), attached(base, museum.dense()):
        step = lesson.step(0, trained)
        noisy = base.schedule.noised(step.latents, step.noise, step.timesteps)
        conditioning = base.encode_prompts([PROMPT] * len(noisy), museum.tokens)
        before = base.predict(noisy, step.timesteps, conditioning).detach()
        with attached(base, deltas) as new:
            after = base.predict(noisy, step.timesteps, conditioning).detach()
            past = Past(total=museum.dense(), tokens=museum.tokens, beside=[PROMPT])
            setting = replace(setting_with(past, base=base), as_before=new.left_out)
            value = Distillation(2.0).begin(setting)(step)
            assert torch.equal(base.predict(noisy, step.timesteps, conditioning), after), "the deltas are back"
    assert value.item() == pytest.approx(2 * (after - before).square().mean().item(), rel=1e-5)


def test_every_picture_has_its_own_random_prompt_in_each_step(base: Base):
    """The term is a mean over the pictures, each with its own prompt; twelve batches of two contain all four pairs."""
    museum, concept, recipe = museum_of(base, "<old>"), small_concept("<new>"), short(batch_size=2)
    lesson, trained = Lesson.prepared(base, concept, recipe), start(base, [concept], recipe, Museum(base.fingerprint))
    prompts = [PROMPT, "a photo of a cat"]
    with base.learning(precision="fp32", checkpointing=False):
        steps = [lesson.step(number, trained) for number in range(12)]
        with attached(base, random_deltas(base)) as new:
            past = Past(tokens=museum.tokens, beside=prompts)
            setting = replace(setting_with(past, base=base), as_before=new.left_out)
            term = Distillation().begin(setting)
            values = [term(step).item() for step in steps]

            def moved(step, prompt: str) -> list[float]:
                noisy = base.schedule.noised(step.latents, step.noise, step.timesteps)
                conditioning = base.encode_prompts([prompt] * len(noisy), museum.tokens)
                now = base.predict(noisy, step.timesteps, conditioning)
                with new.left_out():
                    before = base.predict(noisy, step.timesteps, conditioning)
                return (now - before).square().flatten(1).mean(1).tolist()

            drawn = set()
            for step, value in zip(steps, values, strict=True):
                by_prompt = [moved(step, prompt) for prompt in prompts]
                means = {(i, j): (by_prompt[i][0] + by_prompt[j][1]) / 2 for i in (0, 1) for j in (0, 1)}
                nearest = min(means, key=lambda pair: abs(means[pair] - value))
                assert value == pytest.approx(means[nearest], rel=1e-4)
                drawn.add(nearest)
    assert drawn == {(0, 0), (0, 1), (1, 0), (1, 1)}, "within a batch and from step to step"


def test_learning_with_the_term_changes_old_predictions_less(base: Base):
    museum = museum_of(base, "<old>")
    concept = small_concept("<new>", seed=4)
    latents = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([100, 300, 500, 700])

    def answers(of):
        with torch.no_grad(), viewing(base, of.dense(), of.gated):
            return base.predict(latents, times, base.encode_prompts([PROMPT] * 4, of.tokens))

    def moved_by(weight: float) -> float:
        after = taught(base, museum, concept, short(Distillation(weight), steps=10, clip_norm=100.0))
        return (answers(after) - answers(museum)).square().mean().item()

    assert moved_by(100.0) < 0.3 * moved_by(0.0)


def test_distillation_is_refused_with_gated_deltas():
    with pytest.raises(RecipeError, match="gated deltas change no earlier prompt"):
        Recipe(regularizers=(Distillation(),), applied="word")
