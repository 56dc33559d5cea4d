"""Every recipe learns through ComfyUI what it learns through diffusers."""

import dataclasses
from typing import Any

import pytest
import torch
from clora_pack.clora_core.method.draft import AUTO, Draft
from clora_pack.clora_core.method.recipe import BASELINES, RECIPES, recipe_named
from clora_pack.clora_core.model.base import Base
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.clora_core.over_diffusers.base import open_base
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import view

from .models import concept, ordinary, recipe, taught
from .test_gates import encoded


@pytest.fixture(scope="module")
def bases() -> tuple[HostBase, Base]:
    with ordinary():
        theirs = open_base("starter")
    return HostBase(*load_starter()), theirs


def learned_by(base: Base, method: str) -> tuple[Museum, list[float]]:
    quick, named = recipe(steps=3), recipe_named(method)
    rank = min(quick.rank, named.rank)
    told = dataclasses.replace(
        quick,
        method=method,
        regularizers=named.regularizers,
        applied=named.applied,
        over=named.over,
        down=named.down,
        layer_wise=named.layer_wise,
        word_fit=named.word_fit,
        rank=rank,
    )
    museum, losses = Museum(base.fingerprint), []
    with ordinary():
        for number, word in enumerate(("<one>", "<two>")):
            museum = taught(
                base,
                museum,
                concept(word, seed=number),
                told,
                report=lambda progress: losses.append(progress.losses["diffusion"]),
            )
    return museum, losses


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_recipe_learns_the_same_as_over_diffusers(method: str, bases: tuple[HostBase, Base]):
    (ours, our_losses), (theirs, their_losses) = (learned_by(base, method) for base in bases)
    assert our_losses == pytest.approx(their_losses, rel=1e-4)
    for one, other in zip(ours.exhibits, theirs.exhibits, strict=True):
        assert one.rank == other.rank
        for name, vectors in one.token.vectors.items():
            torch.testing.assert_close(vectors, other.token.vectors[name], rtol=0, atol=1e-3)


def test_museum_maker_is_viewed_with_its_layers(bases: tuple[HostBase, Base]):
    museum, _ = learned_by(bases[0], "museum-maker")
    model, clip, _ = load_starter()
    _, speaking = view(model, clip, museum)
    expected = bases[1].encode_prompts(["a photo of <two>"], museum.tokens).states
    told = encoded(speaking, "a photo of <two>")[0][1]["clora_layers"]
    torch.testing.assert_close(told[:, : expected.shape[1]].float().cpu(), expected, rtol=1e-3, atol=1e-3)


def test_a_new_recipe_node_is_what_train_step_uses_without_one(nodes: dict[str, Any]):
    fields = nodes["CLoRA_Recipe"].INPUT_TYPES()["required"]
    (given,) = nodes["CLoRA_Recipe"].execute(**{name: more["default"] for name, (_, more) in fields.items()}).args
    assert given == Draft.named(AUTO) and given.open
