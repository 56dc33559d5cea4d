"""Run after run leaves nothing behind: neither objects of the pack nor tensors."""

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clora_pack.clora_core.method.recipe import recipe_named
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.actions.inputs import ConceptInputs
from clora_pack.nodes.actions.teaching import train_step
from clora_pack.nodes.host import remembered
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from torch import Tensor

from .models import Models, concept, denoised, random_museum, recipe


def alive() -> Counter[type]:
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(kind for kind in kinds if issubclass(kind, Tensor) or str(kind.__module__).startswith("clora_pack"))


def one_run(nodes: dict[str, Any], models: Models, museum: Museum, number: int) -> None:
    """Load Museum with another strength and a prompt of its words; every tenth time, a Train Step with another seed."""
    strength = 1 + number / 100
    shown, clip, _ = nodes["CLoRA_LoadMuseum"].execute(*models[:2], "", "", strength, museum).args
    states = clip.encode_from_tokens_scheduled(clip.tokenize(f"a photo of <one> and (<two>:{strength})"))[0][0]
    assert denoised(shown, states).isfinite().all()
    if number % 10 == 0:
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(number))
        train_step(*models, [ConceptInputs(concept("<new>"), [images])], recipe(steps=1, seed=number), museum)


def test_thirty_runs_leave_no_more_objects_alive_than_ten(
    nodes: dict[str, Any], own_results: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remembered, "CHUNKS_MOST", 4)  # what is kept of prompts is full after few runs
    models = load_starter()
    museum = random_museum(HostBase(*models), "<one>", "<two>")
    gated = replace(museum.exhibits[1], recipe=recipe_named("word-gated"))
    museum = replace(museum, exhibits=(museum.exhibits[0], gated))
    for number in range(10):
        one_run(nodes, models, museum, number)
    after_ten = alive()
    for number in range(10, 30):
        one_run(nodes, models, museum, number)
    assert alive() - after_ten == Counter()
