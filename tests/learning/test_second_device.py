"""On another device than the CPU the engine gives the same results: no tensor is left on the wrong device."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from clora_core.learning.effect import effect
from clora_core.learning.learn import Learning, Progress
from clora_core.learning.state import LearningState
from clora_core.method.recipe import BASELINES, RECIPES, Recipe, recipe_named
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Museum, viewing
from clora_core.over_diffusers.base import DiffusersBase, open_base, starter_parts
from clora_core.report.review import ReportSettings, make_report
from tests.families import FAMILIES
from tests.saved_models import saved_model
from tests.second_device import MISSING, own_process, second_device
from tests.small import (
    C_LORA,
    LATENT_SHAPE,
    quick_fisher_information,
    same_bits,
    short,
    small_concept,
    small_starter,
    taught,
    tensors_of,
)

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
Device = str | torch.device
Elsewhere = Callable[..., Any]
GENTLY = {"steps": 2, "learning_rate": 1e-5, "token_learning_rate": 1e-5}  # so that rounding cannot reverse a step


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    with own_process() as call:
        yield call


def mix_devices() -> None:
    with second_device() as device:
        here, there = torch.ones(2), torch.ones(2, device=device)
        assert there.device.type == device.type and (there + there).device == there.device
        assert (there * torch.tensor(3.0)).cpu().tolist() == [3, 3]
        for of_two_devices in (lambda: here + there, lambda: torch.stack([there, here]), lambda: there[here > 0]):
            with pytest.raises(RuntimeError, match="two devices"):
                of_two_devices()


def test_tensors_of_two_devices_cannot_be_mixed(elsewhere: Elsewhere):
    elsewhere(mix_devices)


def starter(device: Device) -> DiffusersBase:
    return DiffusersBase(starter_parts(small_starter()), device=device)


def of_family(family: str, device: Device) -> DiffusersBase:
    return open_base(saved_model(family).folder, device=device)


def recipe_of(method: str) -> Recipe:
    """The method with two small steps."""
    return recipe_named(method, rank=min(2, recipe_named(method).rank), batch_size=2, **GENTLY)


def learned_and_sampled(base: DiffusersBase, recipe: Recipe) -> tuple[list[float], Any]:
    """Two concepts learned one after another: every step's diffusion loss, and a picture of the first, as numbers."""
    museum, losses = Museum(base.fingerprint), []
    for number, word in enumerate(("<one>", "<two>")):
        concept = small_concept(word, seed=number)
        museum = taught(
            base, museum, concept, recipe, report=lambda progress: losses.append(progress.losses["diffusion"])
        )
    assert {tensor.device.type for tensor in tensors_of(museum).values()} == {"cpu"}
    with viewing(base, museum.dense(), museum.gated):
        shape = base.latent_shape(64, 64)
        picture = sample(base, ["a photo of <one>"], museum.tokens, Sampling(steps=1), latent_shape=shape)
    return losses, picture.numpy()


def taught_there(make: Callable[[Device], DiffusersBase], recipe: Recipe) -> tuple[list[float], Any]:
    with second_device() as device, quick_fisher_information():
        return learned_and_sampled(make(device), recipe)


def compare(elsewhere: Elsewhere, make: Callable[[Device], DiffusersBase], recipe: Recipe) -> None:
    losses, picture = learned_and_sampled(make("cpu"), recipe)
    found, seen = elsewhere(taught_there, make, recipe)
    assert found == pytest.approx(losses, rel=1e-4)
    assert seen == pytest.approx(picture, abs=1e-2)


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_every_recipe_learns_and_samples_the_same(elsewhere: Elsewhere, method: str):
    compare(elsewhere, starter, recipe_of(method))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_samples_the_same(elsewhere: Elsewhere, family: str):
    all_at_once = short(C_LORA, accumulation=2, flip=True, min_snr_gamma=5.0, checkpointing=True, **GENTLY)
    compare(elsewhere, partial(of_family, family), all_at_once)


def resume_and_learn_jointly() -> None:
    """Stop, resume and learn jointly on the second device."""
    with second_device() as device:
        base, concept, recipe = starter(device), small_concept(), short(C_LORA, steps=4)
        states: list[LearningState] = []

        def keep(progress: Progress) -> None:
            states.append(progress.snapshot())

        whole = taught(base, Museum(base.fingerprint), concept, recipe, report=keep)
        assert {tensor.device.type for tensor in states[1].tensors.values()} == {"cpu"}
        resumed = taught(base, Museum(base.fingerprint), concept, recipe, resume=states[1])
        assert same_bits(resumed, whole)
        both = taught(base, whole, small_concept("<two>"), recipe, companions=[small_concept("<three>", seed=1)])
        assert both.words == ("<one>", "<three>", "<two>")


def test_stopped_learning_resumes_and_joint_learning_works(elsewhere: Elsewhere):
    elsewhere(resume_and_learn_jointly)


def measured(base: DiffusersBase) -> list[float]:
    """The results of a learning and of a report."""
    recipe, museum = short(C_LORA, **GENTLY), Museum(base.fingerprint)
    for number, word in enumerate(("<one>", "<two>")):
        museum = taught(base, museum, small_concept(word, seed=number), recipe)
    learning = Learning(base, museum.only(["<one>"]), (small_concept("<two>", seed=1),), recipe)
    found = effect(learning, museum.exhibits[-1])
    seen = make_report(base, museum, ReportSettings(1, 1, Sampling(1)), latent_shape=LATENT_SHAPE)
    return [found.loss_before, found.loss_after, *found.moved.values(), *found.overlap.values(), *seen.moved]


def measured_there() -> list[float]:
    with second_device() as device:
        return measured(starter(device))


def test_effects_and_reports_are_the_same(elsewhere: Elsewhere):
    assert elsewhere(measured_there) == pytest.approx(measured(starter("cpu")), rel=1e-2, abs=1e-6)
