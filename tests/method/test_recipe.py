"""Recipes refuse invalid values and survive JSON; regularizers meet their contract."""

import dataclasses
import inspect
import json
import re
from typing import Any

import pytest
import torch

from clora_core.errors import RecipeError
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import Trained, start
from clora_core.method.recipe import BASELINES, DEFAULT_METHOD, RECIPES, Recipe, recipe_named
from clora_core.method.regularizers import REGULARIZERS, Regularizer, SelfRegularization
from clora_core.method.step import Past, Setting
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.moments import preserved_moments
from clora_core.museum.museum import Museum
from tests.small import random_deltas, short, small_concept

NAN, INF = float("nan"), float("inf")
BAD = {
    "applied": ["", "nowhere", 1, None],
    "over": ["", "nothing", None],
    "down": ["", "up", None],
    "layer_wise": [1, "yes", None],
    "rank": [-1, 1.5, True, "4", None],
    "steps": [0, -1, 10.0, "10"],
    "batch_size": [0, -1, 0.5, False],
    "accumulation": [0, -1, 1.0],
    "learning_rate": [0, -1e-4, NAN, INF, "0.1", None, True],
    "token_learning_rate": [0, -1e-4, NAN, INF, [1e-3]],
    "clip_norm": [0, -1, NAN, INF],
    "weight_decay": [-0.1, NAN, INF, "none"],
    "min_snr_gamma": [-1, NAN, INF],
    "schedule": ["", "cosinus", None],
    "warmup": [-0.1, 1.1, NAN, "half"],
    "flip": ["no", 1, None],
    "caption_lines": ["no", 1, None],
    "shuffle_tags": ["no", 0, None],
    "keep_tokens": [-1, 1.0, True, "2"],
    "tag_dropout": [-0.1, 1.1, NAN, "half"],
    "caption_dropout": [-0.1, 1.1, NAN, True],
    "word_fit": [-1.0, INF, NAN],
    "precision": ["float16", "", None],
    "checkpointing": ["yes", 0],
    "stop_when_learned": ["yes", 1, None],
    "token": ["", "random", True, None],
    "seed": [-1, 2**63, 1.5, "1", True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_every_invalid_value_is_refused_with_its_name(name: str, value: object):
    for attempt in (
        lambda: Recipe(**{name: value}),
        lambda: recipe_named("c-lora", **{name: value}),
        lambda: Recipe.from_json({name: value}),
    ):
        with pytest.raises(RecipeError, match=f"^{name} is {re.escape(repr(value))}; it must be "):
            attempt()


@pytest.mark.parametrize("other", [{"applied": "word"}, {"down": "identity"}, {"down": "orthogonal"}])
def test_a_shared_delta_can_be_neither_gated_nor_restricted(other: dict[str, Any]):
    with pytest.raises(RecipeError, match=r"^over is 'shared'; it must be museum or base"):
        recipe_named("single-lora", **other)


def test_every_field_is_tested_with_invalid_values():
    assert {*BAD, "method", "regularizers"} == {field.name for field in dataclasses.fields(Recipe)}


def test_the_offered_recipes_are_complete_and_no_baseline_is_offered():
    offered = {"preservation", "word-gated-onwards", "word-gated", "c-lora", "museum-maker", "textual-inversion"}
    assert set(RECIPES) == offered and next(iter(RECIPES)) == DEFAULT_METHOD
    assert len(BASELINES) == 12 and not offered & set(BASELINES)


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_every_recipe_survives_json(method: str):
    recipe = recipe_named(method)
    assert recipe.method == method
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_every_number_survives_json():
    numbers = {
        "rank": 3,
        "steps": 7,
        "learning_rate": 0.1 + 0.2,
        "token_learning_rate": 1e-300,
        "batch_size": 5,
        "accumulation": 2,
        "clip_norm": 1 / 3,
        "weight_decay": 1e-2,
        "schedule": "cosine",
        "warmup": 0.1,
        "flip": True,
        "min_snr_gamma": 5.0,
        "precision": "bf16",
        "checkpointing": True,
        "seed": 2**63 - 1,
    }
    recipe = Recipe("mine", (SelfRegularization(0.1, relative=False),), **numbers)
    assert all(getattr(recipe, name) != getattr(Recipe(), name) for name in numbers)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"no 'learning_rte'.*learning_rate"):
        Recipe.from_json({"learning_rte": 1e-4})


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([{"name": "elastic"}], "no regularizer 'elastic'.*self_regularization"),
        ([{"weight": 1}], "a regularizer is {'weight': 1}; it must be an object with a name"),
        ([{"name": "self_regularization", "wait": 1}], "is 'wait'; it must be one of its settings: weight, relative"),
        ([{"name": "self_regularization", "weight": -1}], "weight of self_regularization is -1"),
        (
            [{"name": "self_regularization", "weight": "1"}],
            r"self_regularization.weight is '1'; it must be of type float",
        ),
        ([{"name": "self_regularization", "weight": True}], "self_regularization.weight is True"),
        (
            [{"name": "self_regularization", "relative": 1}],
            "self_regularization.relative is 1; it must be of type bool",
        ),
        (["self_regularization"], "a regularizer is 'self_regularization'; it must be an object"),
        ("self_regularization", "a regularizer is 's'; it must be an object"),
        ([3], "a regularizer is 3; it must be an object"),
        (None, "cannot be read"),
        (
            [{"name": "self_regularization"}] * 2,
            "'self_regularization, self_regularization'; it must be different regularizers",
        ),
    ],
)
def test_invalid_regularizers_are_refused(entries: object, reason: str):
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_json({"regularizers": entries})


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"no recipe 'clora'.*preservation.*c-lora.*textual-inversion\.$"):
        recipe_named("clora")


def test_a_named_recipe_changes_only_in_the_given_numbers():
    changed = recipe_named("c-lora", rank=3)
    assert changed == dataclasses.replace(RECIPES["c-lora"], rank=3)
    assert RECIPES["c-lora"].rank != 3


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_regularizer_is_a_named_frozen_value(kind: type[Regularizer]):
    assert kind.name == kind.name.lower() and kind.name.isidentifier()
    assert [other.name for other in REGULARIZERS].count(kind.name) == 1
    instance = kind()
    for field in dataclasses.fields(instance):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(instance, field.name, None)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_regularizer_cites_its_paper(kind: type[Regularizer]):
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", inspect.getmodule(kind).__doc__)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_regularizer_survives_json(kind: type[Regularizer]):
    recipe = Recipe("one", (kind(),))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("weight", [-1.0, NAN, INF])
def test_an_invalid_weight_is_refused(kind: type[Regularizer], weight: float):
    with pytest.raises(RecipeError, match=f"^The weight of {kind.name} is {weight}; it must be a finite number from 0"):
        kind(weight=weight)


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("begun", [False, True])
def test_a_regularizer_is_finite_and_has_gradients_for_new_deltas_only(
    kind: type[Regularizer], begun: bool, base: Base
):
    """At the start, where `up` is zero and so is every new delta, as well as later."""
    trained = started(base)
    trained = moved(trained) if begun else trained
    past = {projection: delta.dense() for projection, delta in random_deltas(base).items()}
    old = ConceptToken("<old>", {"clip_l": torch.ones(1, 2, 128)})
    before = Past(
        total=past,
        deltas=[random_deltas(base)],
        shared=random_deltas(base, seed=8),
        prompts=["a photo of <old>"],
        tokens=[old],
        beside=["a photo of <old>"],
    )
    value = term_value(kind, base, trained, before)
    assert value.shape == () and value.dtype == torch.float32
    assert 0 <= value.item() < INF
    gradients = [factor.grad for delta in trained.deltas.values() for factor in (delta.up, delta.down)]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    words = trained.token(small_concept().word).vectors.values()
    assert all(vectors.grad is None or vectors.grad.isfinite().all() for vectors in words)
    assert not begun or any(delta.up.grad.abs().max() > 0 for delta in trained.deltas.values())
    assert all(matrix.grad is None and not matrix.requires_grad for matrix in past.values())
    assert all(parameter.grad is None for slot in base.slots.values() for parameter in slot.module.parameters())


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_a_regularizer_without_a_past_is_finite(kind: type[Regularizer], base: Base):
    trained = started(base)
    assert 0 <= term_value(kind, base, trained, Past()).item() < INF
    assert all(value.grad is None or value.grad.isfinite().all() for value in trained.parameters().values())


def started(base: Base) -> Trained:
    return start(base, [small_concept()], short(), Museum(base.fingerprint))


def term_value(kind: type[Regularizer], base: Base, trained: Trained, past: Past) -> torch.Tensor:
    """The term's value in the first step, after its backward pass."""
    lesson = Lesson.prepared(base, small_concept(), short(kind()))
    token = trained.token(small_concept().word)
    with base.learning(precision="fp32", checkpointing=False), attached(base, trained.deltas) as new:
        setting = Setting(
            base=base,
            past=past,
            latents=[bucket.latents[0] for bucket in lesson.buckets],
            as_before=new.left_out,
            measure_reference_loss=lambda: lesson.reference_loss(token),
            measure_moments=lambda: preserved_moments(base, past.prompts, past.tokens),
            batch_size=2,
        )
        value = kind().begin(setting)(lesson.step(0, trained))
        if value.requires_grad:
            value.backward()
    return value


def moved(trained: Trained) -> Trained:
    """As after some steps, when no factor is zero."""
    rng = torch.Generator().manual_seed(3)
    deltas = {
        projection: LowRank((0.1 * torch.randn(delta.up.shape, generator=rng)).requires_grad_(), delta.down)
        for projection, delta in trained.deltas.items()
    }
    return Trained(deltas, trained.vectors)


def test_what_only_recipes_in_older_museums_have_is_passed_over():
    recipe = recipe_named("preservation")
    fields = recipe.to_json()
    older = {"name": "word_focus", "weight": 5.0}
    fields |= {"word_alone": 0.25, "regularizers": [*fields["regularizers"], older]}  # type: ignore[misc]
    assert Recipe.from_json(fields) == recipe
