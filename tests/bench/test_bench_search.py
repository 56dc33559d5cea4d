"""`bench search` tries three values per recipe on subjects that no table uses, and resumes after a stop."""

import json

import pytest

from clora_core.bench import search as bench_search
from clora_core.bench.search import TRACKS, search_table
from clora_core.cli import main
from clora_core.starter.course import take_course
from clora_core.starter.subjects import CROWD, IDENTITIES, STYLES

SHORT = ["--steps", "1", "--samples", "2", "--plain", "4"]


def test_three_weights_are_tried_and_none_twice(tmp_path, capsys):
    command = ["bench", "search", "--methods", "c-lora", *SHORT, "--out", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "search.json").read_text())
    assert sorted(result["weight"] for result in results) == [1, 3, 10]
    for result in results:
        assert [r["weight"] for r in result["recipe"]["regularizers"]] == [result["weight"]], "times κ = 1"
    trials = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()}
    assert main(command) == 0
    assert trials == {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()}
    assert (tmp_path / "search.md").read_text().strip() in capsys.readouterr().out


def test_without_a_weight_the_learning_rate_is_tried_in_every_wording(tmp_path, monkeypatch):
    prompts = []

    def course(*arguments, **more):
        taken = take_course(*arguments, **more)
        prompts.extend(taken.museum.prompts)
        return taken

    monkeypatch.setattr(bench_search, "take_course", course)
    command = ["bench", "search", "--subjects", "styles", "--methods", "textual-inversion", "--wording", "first"]
    assert main([*command, *SHORT, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "search.json").read_text())
    assert {result["method"] for result in results} == {"textual-inversion+first"}
    assert sorted(result["learning_rate"] for result in results) == [1.7e-2, 5e-2, 1.5e-1]
    assert all(result["recipe"]["token_learning_rate"] == result["learning_rate"] for result in results)
    assert prompts and all(prompt.endswith("style a photo") for prompt in prompts)


def test_a_wording_that_the_subjects_do_not_have_is_refused_before_anything_runs(tmp_path, capsys):
    command = ["bench", "search", "--methods", "c-lora", "--wording", "first", *SHORT, "--out", str(tmp_path)]
    assert main(command) != 0
    assert "+first is for styles" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("track", TRACKS)
def test_searches_and_tables_use_different_subjects(track: str):
    assert not set(TRACKS[track]) & {*IDENTITIES, *CROWD, *STYLES}


def test_the_best_trial_keeps_most_and_costs_plain_prompts_least():
    result = {"track": "identities", "method": "one", "learned": 1.0, "forgetting": 0.0, "traits": 0.5}
    trials = [
        result | {"weight": w, "kept": kept, "base_damage": lost} for w, kept, lost in ((1, 0.9, 0.1), (3, 0.8, 0))
    ]
    rows = search_table([*trials, result | {"weight": 10, "kept": 1.0, "base_damage": 0.15}]).splitlines()[2:]
    assert ["**" in row for row in rows] == [False, False, True]
