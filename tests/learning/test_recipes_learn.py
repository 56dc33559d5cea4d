"""Every recipe learns: over weights that are held in float16 or bfloat16, and the word alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from clora_core.learning.learn import Progress
from clora_core.method.recipe import BASELINES, RECIPES, Recipe, recipe_named
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase, starter_parts
from tests.small import same_bits, short, small_base, small_concept, small_starter, taught

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=HALVES)
def held(request: pytest.FixtureRequest) -> DiffusersBase:
    return DiffusersBase(starter_parts(small_starter()), dtype=HALVES[request.param])


def quick(method: str, **numbers: object) -> Recipe:
    usual, named = short(), recipe_named(method)
    told = {name: getattr(usual, name) for name in ("steps", "batch_size", "learning_rate", "token_learning_rate")}
    return dataclasses.replace(named, **({"rank": min(2, named.rank)} | told | numbers))


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_a_recipe_learns_over_them(method: str, held: DiffusersBase):
    museum, heard = Museum(held.fingerprint), []
    for number, word in enumerate(("<one>", "<two>")):
        museum = taught(held, museum, small_concept(word, seed=number), quick(method), report=heard.append)
    assert all(torch.tensor(list(progress.losses.values())).isfinite().all() for progress in heard)
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_that_come_through_float16_are_scaled(precision: str):
    """With precision fp32 too, which means the dtype of the weights."""
    held, scales = DiffusersBase(starter_parts(small_starter()), dtype=torch.float16), []

    def report(progress: Progress) -> None:
        scales.append(progress.snapshot().tensors["optimizer.scale"][0].item())

    recipe = quick("sequential", precision=precision, clip_norm=1e9)
    taught(held, Museum(held.fingerprint), small_concept(), recipe, report=report)
    assert min(scales) > 1


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_rank_zero_is_the_word_alone(method: str):
    base = small_base()
    museum = taught(base, Museum(base.fingerprint), small_concept("<one>"), quick(method, rank=0))
    museum = taught(base, museum, small_concept("<two>", seed=1), quick(method, rank=0))
    assert [exhibit.deltas for exhibit in museum.exhibits] == [{}, {}]
