"""Courses over identities and styles on the real starter model, and their metrics."""

import json
from dataclasses import replace

import pytest
import torch

from clora_core.bench.forgetting_table import compared_with, table_of
from clora_core.bench.methods import check_method, is_joint, method_recipe
from clora_core.cli import main
from clora_core.errors import RecipeError
from clora_core.measure import kernel_distance
from clora_core.method.recipe import BASELINES, RECIPES, recipe_named
from clora_core.model.concept import ConceptToken
from clora_core.museum.museum import Exhibit, Museum
from clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_core.starter.course import starter_recipe
from clora_core.starter.exam import Examiner, concept_of, drawn
from clora_core.starter.judge import load_judge
from clora_core.starter.layout import vocabulary
from clora_core.starter.style_judge import NAMES, StyleJudge, drawn_in
from clora_core.starter.subjects import ALL_IDENTITIES, SPARE_STYLES, STYLES, description, unrelated
from tests.small import pixels_of, taught


@pytest.fixture(scope="module")
def base() -> DiffusersBase:
    return open_base("starter")


@pytest.fixture(scope="module")
def examiner(base: DiffusersBase) -> Examiner:
    return Examiner(base, load_judge())


def test_the_style_judge_recognizes_every_style_on_unseen_pictures(examiner: Examiner):
    for style in NAMES:
        found = examiner.style_judge.styles_of(drawn_in(style, 48, seed=5))
        assert found.count(style) >= 44, style


def test_the_spare_style_judge_recognizes_every_style(examiner: Examiner):
    judge = examiner.spare_style_judge
    for style in (*NAMES, *SPARE_STYLES):
        assert judge.styles_of(drawn_in(style, 48, seed=5)).count(style) >= 44, style
    assert set(judge.names) - set(examiner.style_judge.names) == set(SPARE_STYLES)


def test_the_style_judge_recognizes_styles_through_the_vae(examiner: Examiner, base: DiffusersBase):
    for style in (*STYLES, *SPARE_STYLES):
        again = base.decode_latents(base.encode_pictures(drawn_in(style, 32, seed=6)))
        assert examiner.spare_style_judge.styles_of(again).count(style) >= 26, style


def test_the_style_judge_matches_linear_discriminant_analysis():
    """Against Mahalanobis distances to each style's mean, in double precision."""
    judge = load_judge()
    ours = StyleJudge.fitted(judge)
    from clora_core.starter import style_judge as parts

    features = [parts.style_features(judge, drawn_in(s, parts.EXAMPLES, seed=0)).double() for s in NAMES]
    means = torch.stack([part.mean(0) for part in features])
    within = torch.cat([part - part.mean(0) for part in features])
    scale = within.std(0).clamp_min(1e-6)
    spread = 0.9 * (within / scale).T @ (within / scale) / len(within) + 0.1 * torch.eye(len(scale)).double()
    pictures = drawn_in("sketch", 8, seed=3)
    apart = (parts.style_features(judge, pictures).double()[:, None] - means) / scale
    distances = torch.einsum("psf,fg,psg->ps", apart, torch.linalg.inv(spread), apart)
    assert ours.styles_of(pictures) == [NAMES[place] for place in distances.argmin(1).tolist()]


def test_a_styles_captions_describe_the_content_and_name_the_word():
    concept = concept_of("neon", 6, seed=0)
    assert concept.kind == "style" and len(set(concept.captions)) == 6
    assert all(caption.endswith(" in {word} style") for caption in concept.captions)
    assert concept.prompt == "a photo in <neon> style"
    assert torch.equal(pixels_of(concept), drawn("neon", 6, seed=0))
    assert concept_of("ada", 2, seed=0, wording="noun").prompt == "a photo of <ada> person"


def test_a_frozen_word_stands_for_other_known_words_than_every_other():
    for phrase in (unrelated, description):
        assert len(set(map(phrase, ALL_IDENTITIES))) == len(ALL_IDENTITIES)
        assert not set(" ".join(map(phrase, ALL_IDENTITIES)).split()) - set(vocabulary())
    assert concept_of("ada", 2, seed=0, wording="unrelated").start == unrelated("ada")


def test_the_word_of_a_style_can_come_before_the_content():
    usual, first = concept_of("neon", 6, seed=0), concept_of("neon", 6, seed=0, wording="first")
    end = " in {word} style"
    assert first.captions == tuple(f"{end.strip()} {caption.removesuffix(end)}" for caption in usual.captions)
    assert first.prompt == "in <neon> style a photo" and torch.equal(pixels_of(first), pixels_of(usual))


def test_a_style_is_evaluated_with_the_wording_of_its_captions(examiner: Examiner, monkeypatch: pytest.MonkeyPatch):
    prompts_used: list[str] = []
    seen = drawn("neon", 2, seed=0)
    monkeypatch.setattr(Examiner, "_sampled", lambda self, museum, prompts, *more: prompts_used.extend(prompts) or seen)
    for wording in ("usual", "first"):
        concept = concept_of("neon", 2, seed=0, wording=wording)
        exhibit = Exhibit(
            ConceptToken("<neon>", {"clip_l": torch.zeros(1, 1, 128)}),
            {},
            starter_recipe("c-lora"),
            concept.kind,
            concept.prompt,
        )
        examiner.evaluate(Museum(examiner.base.fingerprint, (exhibit,)), "neon", count=2)
    assert [prompt.replace(" in <neon> style", "") for prompt in prompts_used[:2]] == [
        prompt.replace("in <neon> style ", "") for prompt in prompts_used[2:]
    ]
    assert all(prompt.startswith("in <neon> style a photo of ") for prompt in prompts_used[2:])


@pytest.mark.slow
def test_a_style_is_learned(base: DiffusersBase, examiner: Examiner):
    recipe = starter_recipe("word-gated", seed=0, steps=200)
    museum = taught(base, Museum(base.fingerprint), concept_of("blueprint", 16, seed=0, vectors=2), recipe)
    sight = examiner.evaluate(museum, "blueprint", count=24)
    assert sight.alignment >= 0.5 and sight.attributes >= 0.3, "chance is 0.1"


@pytest.mark.parametrize(("track", "method"), [("styles", "c-lora"), ("spare-styles", "museum-maker+first")])
def test_the_benchmark_writes_results_for_style_tracks(track: str, method: str, tmp_path):
    command = ["bench", "forgetting", "--quick", "--subjects", track, "--methods", method]
    assert main([*command, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "forgetting.json").read_text())
    assert [result["track"] for result in results] == [track]
    text = (tmp_path / "forgetting.md").read_text()
    assert f"## {track.capitalize()}" in text and "## Identities" not in text


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_starter_recipes_differ_only_in_training_numbers(method: str):
    ours, usual = starter_recipe(method), recipe_named(method)
    numbers = ("rank", "steps", "learning_rate", "token_learning_rate", "batch_size", "schedule")
    assert replace(ours, **{name: getattr(usual, name) for name in numbers}) == usual


def test_method_names_can_change_a_recipe():
    stronger, wording = method_recipe("c-lora*10", seed=3)
    assert stronger.regularizers[0].weight == 10 * starter_recipe("c-lora").regularizers[0].weight
    assert stronger.seed == 3 and wording == "usual"
    assert method_recipe("c-lora+noun", seed=0)[1] == "noun"
    assert method_recipe("full-kv@0.006", seed=0)[0].learning_rate == 0.006 != starter_recipe("full-kv").learning_rate
    assert method_recipe("textual-inversion@0.15", seed=0)[0].token_learning_rate == 0.15
    assert method_recipe("c-lora+first", seed=0) == (starter_recipe("c-lora"), "first")
    frozen, wording = method_recipe("c-lora+unrelated", seed=0)
    assert frozen == replace(starter_recipe("c-lora"), token="frozen") and wording == "unrelated"
    for method, track in (("c-lora+noun", "styles"), ("c-lora+first", "identities")):
        with pytest.raises(RecipeError, match=r"is for (identities|styles), but"):
            check_method(method, track)
    less, _ = method_recipe("museum-maker-without-style_distillation", seed=0)
    assert [r.name for r in less.regularizers] == ["weight_direction", "distillation"]
    one_part, _ = method_recipe("museum-maker-without-layer_wise", seed=0)
    assert one_part == replace(starter_recipe("museum-maker"), layer_wise=False) != starter_recipe("museum-maker")
    assert method_recipe("joint+first", seed=0) == (starter_recipe("sequential"), "first")
    assert is_joint("joint") and is_joint("joint+first") and not is_joint("separate")
    for wrong in (
        "c-lora-without-distillation",
        "c-lora-without-layer_wise",
        "d-lora",
        "jointly",
        "c-lora*",
        "c-lora*x",
        "c-lora@",
        "c-lora@0",
    ):
        with pytest.raises(RecipeError):
            method_recipe(wrong, seed=0)


def made_up(method: str, track: str = "identities", **values: float) -> list[dict]:
    from clora_core.bench.forgetting_table import COLUMNS

    runs = []
    for offset in (-0.01, 0.0, 0.01):
        run = dict.fromkeys(COLUMNS, 0.5) | {name: value + offset for name, value in values.items()}
        labels = {"method": method, "track": track, "seed": len(runs), "subjects": ["ada", "dex"]}
        runs.append(run | labels | {"alignment": [[0.5, None], [0.5, 0.5]]})
    return runs


def test_runs_are_compared_seed_by_seed():
    """Both vary equally with the seed, so their difference is constant; a run without a pair is ignored."""
    runs = [*made_up("c-lora", kept=0.5), *made_up("preservation", kept=0.75), *made_up("joint", kept=0.5)[:1]]
    runs.append(made_up("joint", kept=0.1)[0] | {"seed": 7})
    table = compared_with("c-lora", runs).splitlines()
    assert table[2].startswith("| preservation | +0.25 ± ") and table[2].endswith("| 3 |")
    assert float(table[2].split("±")[1].split("|")[0]) < 1e-9
    assert table[3].startswith("| joint | +0 |") and table[3].endswith("| 1 |")
    assert compared_with("c-lora", made_up("joint")) == ""


def test_intervals_follow_students_t_distribution():
    """Of the mean of 1, 2, 3: t(2) = 4.303 times its standard error, 1/√3."""
    runs = [run | {"kept": value} for run, value in zip(made_up("lwf"), (1.0, 2.0, 3.0), strict=True)]
    assert "2 ± 2.5 " in table_of(runs)


def test_the_kernel_distance_is_small_within_an_identity(examiner: Examiner):
    same = [drawn("ada", 64, seed=seed) for seed in (1, 2)]
    other = drawn("gus", 64, seed=1)
    near, far = (
        kernel_distance(examiner.features(same[0], "ada"), examiner.features(each, "ada")) for each in (same[1], other)
    )
    assert abs(near) < 0.1 * far
