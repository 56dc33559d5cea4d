"""Every recipe learns: over float16 and bfloat16 weights, over a loaded museum, and the word alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from clora_core.learning.learn import Progress
from clora_core.method.recipe import BASELINES, RECIPES, Recipe, recipe_named
from clora_core.method.regularizers import ContextPreservation
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase, starter_parts
from tests.small import same_bits, short, small_base, small_concept, small_starter, taught

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=HALVES)
def half_base(request: pytest.FixtureRequest) -> DiffusersBase:
    return DiffusersBase(starter_parts(small_starter()), dtype=HALVES[request.param])


def quick(method: str, **numbers: object) -> Recipe:
    usual, named = short(), recipe_named(method)
    copied = {name: getattr(usual, name) for name in ("steps", "batch_size", "learning_rate", "token_learning_rate")}
    return dataclasses.replace(named, **({"rank": min(2, named.rank)} | copied | numbers))


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_a_recipe_learns_over_half_precision_weights(method: str, half_base: DiffusersBase):
    museum, reports = Museum(half_base.fingerprint), []
    for number, word in enumerate(("<one>", "<two>")):
        museum = taught(half_base, museum, small_concept(word, seed=number), quick(method), report=reports.append)
    assert all(torch.tensor(list(progress.losses.values())).isfinite().all() for progress in reports)
    for exhibit in museum.exhibits:
        assert all(delta.dense().isfinite().all() for delta in exhibit.deltas.values())
        assert bool(exhibit.deltas) == (recipe_named(method).rank > 0)
        assert all(delta.dense().abs().max() > 0 for delta in exhibit.deltas.values())


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_a_recipe_learns_over_a_museum_loaded_in_inference_mode(method: str, tmp_path: Path):
    """As ComfyUI runs the node that loads a museum."""
    base = small_base()
    first = taught(base, Museum(base.fingerprint), small_concept("<one>"), quick(method))
    path = save_museum(first, tmp_path / "m.safetensors")
    with torch.inference_mode():
        second = taught(base, load_museum(path), small_concept("<two>", seed=1), quick(method))
    assert same_bits(second, taught(base, first, small_concept("<two>", seed=1), quick(method)))


@pytest.mark.parametrize("method", [*RECIPES, *BASELINES, "word-gated with preservation"])
def test_an_independent_recipe_and_no_other_learns_the_same_after_another_concept(method: str, base: DiffusersBase):
    name, _, guarded = method.partition(" with ")
    recipe = quick(name, **({"regularizers": (ContextPreservation(),)} if guarded else {}))
    empty, one, two = Museum(base.fingerprint), small_concept("<one>"), small_concept("<two>", seed=1)
    alone = taught(base, empty, two, recipe).exhibits[-1]
    after = taught(base, taught(base, empty, one, recipe), two, recipe).exhibits[-1]
    assert recipe.independent == after.same_as(alone)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_through_float16_weights_are_scaled(precision: str):
    """Also with precision fp32, which means the dtype of the weights."""
    half_base, scales = DiffusersBase(starter_parts(small_starter()), dtype=torch.float16), []

    def report(progress: Progress) -> None:
        scales.append(progress.snapshot().tensors["optimizer.scale"][0].item())

    recipe = quick("sequential", precision=precision, clip_norm=1e9)
    taught(half_base, Museum(half_base.fingerprint), small_concept(), recipe, report=report)
    assert min(scales) > 1


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_rank_zero_learns_the_word_alone(method: str):
    base = small_base()
    museum = taught(base, Museum(base.fingerprint), small_concept("<one>"), quick(method, rank=0))
    museum = taught(base, museum, small_concept("<two>", seed=1), quick(method, rank=0))
    assert [exhibit.deltas for exhibit in museum.exhibits] == [{}, {}]
