"""Automatic numbers fit the model's family and the device's memory."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from clora_core.learning.fitting import Device, copied_bytes, described, fitted, learning_bytes, past_values
from clora_core.learning.start import start_vectors
from clora_core.method.draft import Draft
from clora_core.method.recipe import DEFAULT_METHOD, RECIPES, Recipe, recipe_named
from clora_core.model.base import Base, Fingerprint
from clora_core.model.concept import ConceptToken
from clora_core.model.families import family_named, find_projections
from clora_core.model.families.family import Family
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.museum import Exhibit, Museum
from clora_core.starter.course import starter_recipe
from tests.families import REAL, build_unet
from tests.small import short, small_concept

GB = 2**30
NOTHING = Museum(Fingerprint("sd15", "0" * 64))
OPEN = Draft(RECIPES[DEFAULT_METHOD])
TEXT_ENCODER_BYTES = {"sd15": 246_000_000, "sdxl": 1_634_000_000}


@cache
def unet(family: str) -> torch.nn.Module:
    """The UNet of the real size, on the meta device."""
    with torch.device("meta"):
        return build_unet(family, REAL[family])


def recipe_on(family: str, gigabytes: float, draft: Draft = OPEN) -> Recipe:
    """The recipe for a model stored in 16 bits, on a card of that size."""
    network, resolution = unet(family), 512 if family == "sd15" else 1024
    projections, copied = find_projections(network), copied_bytes(network, 2, lambda layer: True)
    models = TEXT_ENCODER_BYTES[family] + 2 * sum(weight.numel() for weight in network.parameters())

    def needed(recipe: Recipe) -> float:
        pixels = (resolution // 8) ** 2
        return models + learning_bytes(
            family_named(family), projections, recipe, NOTHING, latent_pixels=pixels, copied_bytes=copied, read_bytes=2
        )

    return fitted(draft, family_named(family), Device(gigabytes * GB, "bf16"), needed)


@pytest.mark.parametrize(
    ("family", "gigabytes", "said"),
    [
        ("sd15", 4, "SD1.5 on 4 GB: bf16, batch 2 ×2, checkpointing; "),
        ("sd15", 8, "SD1.5 on 8 GB: bf16, batch 2 ×2; "),
        ("sd15", 16, "SD1.5 on 16 GB: bf16, batch 4; "),
        ("sdxl", 12, "SDXL on 12 GB: bf16, batch 2 ×2, checkpointing; "),
        ("sdxl", 24, "SDXL on 24 GB: bf16, batch 1 ×4; "),
        ("sdxl", 80, "SDXL on 80 GB: bf16, batch 4; "),
    ],
)
def test_numbers_fit_the_memory_of_the_device_and_are_described(family: str, gigabytes: int, said: str):
    recipe = recipe_on(family, gigabytes)
    text = described(recipe, family_named(family), Device(gigabytes * GB, "bf16"))
    assert text == said + "rank 16, 400 steps, learning rate 0.0005 (word 0.005)"
    assert recipe.batch_size * recipe.accumulation == 4


def test_chosen_numbers_are_kept():
    numbers = {"rank": 3, "steps": 7, "learning_rate": 1e-3, "batch_size": 3, "precision": "fp32", "schedule": "linear"}
    recipe = recipe_on("sdxl", 12, OPEN.with_numbers(**numbers, seed=5))
    assert {name: getattr(recipe, name) for name in numbers} == numbers and recipe.seed == 5
    assert recipe.accumulation == 1 and recipe.checkpointing, "a chosen batch is not divided, but checkpointed"
    assert recipe_on("sd15", 80, OPEN.with_numbers(checkpointing=True)).checkpointing
    assert recipe_on("sd15", 80, OPEN.with_numbers(accumulation=3)).accumulation == 3
    whole = short(steps=9)
    assert recipe_on("sdxl", 4, Draft.of(whole)) == whole, "all numbers of a finished recipe are chosen"


def test_none_and_auto_leave_a_number_automatic():
    assert OPEN.with_numbers(rank=None, precision="auto", steps=None) == OPEN
    assert OPEN.with_numbers(rank=0).chosen == {"rank"}, "a number like any other"


def family_recipe(family: Family, method: str = DEFAULT_METHOD, precision: str = "bf16") -> Recipe:
    return fitted(Draft(recipe_named(method)), family, Device(80 * GB, precision), lambda recipe: 0)  # type: ignore[arg-type]


def test_the_starter_gets_numbers_of_its_own(base: Base):
    assert family_recipe(base.family) == starter_recipe(DEFAULT_METHOD)
    assert family_recipe(base.family, "textual-inversion").rank == 0
    assert family_recipe(family_named("sd2"), precision="fp16") == replace(OPEN.recipe, precision="fp16")


def test_automatic_vector_counts_follow_the_family_or_the_start_words(base: Base):
    (auto,) = start_vectors(base, small_concept(vectors=0)).values()
    (two,) = start_vectors(base, small_concept(vectors=2)).values()
    assert torch.equal(auto, two)
    (started,) = start_vectors(base, small_concept(vectors=0, start="red cat photo")).values()
    assert started.shape[1] == 3


def test_a_recipe_with_a_word_fit_needs_fewer_steps_where_this_was_measured(base: Base):
    own = base.family.numbers
    assert family_recipe(base.family, "preservation").steps == own.fitted_steps == own.steps / 2
    assert family_recipe(base.family, "c-lora").steps == own.steps
    assert recipe_on("sd15", 8, Draft(recipe_named("preservation"))).steps == family_named("sd15").numbers.steps


@pytest.mark.parametrize("method", ["ewc", "lwf"])
def test_the_memory_estimate_includes_regularizers(method: str):
    """Full matrices and their Fisher information; another forward pass."""
    projections, family = find_projections(unet("sd15")), family_named("sd15")
    recipe = recipe_named(method)
    plain = replace(recipe, regularizers=(), down="learned")
    more, less = (
        learning_bytes(family, projections, each, NOTHING, latent_pixels=4096, copied_bytes=0, read_bytes=4)
        for each in (recipe, plain)
    )
    weights = 4 * sum(projection.shape[0] * projection.shape[1] for projection in projections)
    expected = 6.5 * weights if method == "ewc" else 2 * 4 * 4096 * family.kept_bytes
    assert more - less == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["z-image", "qwen-image"])
def test_the_default_method_is_word_gated_where_text_and_picture_mix(name: str):
    family, device = family_named(name), Device(80 * GB, "bf16")
    opened, chosen = (fitted(Draft(OPEN.recipe, open=each), family, device, lambda recipe: 0) for each in (True, False))
    assert (opened.method, opened.applied, opened.regularizers) == ("word-gated-onwards", "onwards", ())
    assert opened.word_fit == 0 < chosen.word_fit
    assert (chosen.method, chosen.applied) == ("preservation", "everywhere")
    assert recipe_on("sd15", 8, Draft(OPEN.recipe, open=True)) == recipe_on("sd15", 8)


def test_concepts_that_are_learned_at_once_with_two_streams_share_ungated_deltas():
    several = [small_concept("<a>"), small_concept("<b>")]
    draft, device = Draft(OPEN.recipe, open=True), Device(80 * GB, "bf16")
    recipe = fitted(draft, family_named("qwen-image"), device, lambda recipe: 0, several)
    assert (recipe.method, recipe.applied) == ("preservation", "everywhere")


def wide(rank: int, count: int) -> tuple[list[Projection], Museum]:
    """Projections of Wan 14B's size, and a museum of so many exhibits."""
    places = [Projection(f"blocks.{n}.cross_attn.k", "key", (5120, 5120)) for n in range(2)]
    delta = LowRank(torch.zeros(5120, rank, device="meta"), torch.zeros(rank, 5120, device="meta"))
    token = ConceptToken("<a>", {"umt5xxl": torch.zeros(1, 1, 4096)})
    exhibits = [
        Exhibit(replace(token, word=f"<{number}>"), dict.fromkeys(places, delta), Recipe()) for number in range(count)
    ]
    return places, Museum(Fingerprint("wan", "0" * 64), tuple(exhibits))


def test_the_past_is_counted_as_factors_or_matrices_as_it_is_stored():
    values = 5120 * 5120
    for count, held in [(0, 0), (10, 10 * 16 * 10240), (159, 159 * 16 * 10240), (160, values), (1000, values)]:
        places, museum = wide(16, count)
        assert past_values(places[0], museum) == held
    projections = find_projections(unet("sdxl"))
    whole = sum(past_values(projection, NOTHING) for projection in projections)
    assert whole == sum(math.prod(projection.shape) for projection in projections) > 300e6


def test_a_regularizer_that_reads_the_past_needs_a_float32_copy():
    places, museum = wide(16, 10)
    family, values = family_named("wan"), 2 * 10 * 16 * 10240
    needs = {
        (method, read): learning_bytes(
            family, places, recipe_named(method), museum, latent_pixels=0, copied_bytes=0, read_bytes=read
        )
        for method in ("preservation", "c-lora")
        for read in (2, 4)
    }
    assert needs["preservation", 4] - needs["preservation", 2] == 2 * values
    assert needs["c-lora", 2] - needs["preservation", 2] == 4 * values
    assert needs["c-lora", 4] == needs["preservation", 4], "one tensor for both"
