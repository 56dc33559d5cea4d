"""The benchmark of forgetting runs every recipe, goes on where it stopped, and averages what it measured."""

import json
import math

import pytest

from clora_core.bench.forgetting_table import table_of
from clora_core.bench.hypotheses import HYPOTHESES
from clora_core.bench.runs import COLUMNS
from clora_core.cli import main
from clora_core.method.recipe import RECIPES

METHODS = ("textual-inversion", "word-gated", "separate", "c-lora*10+noun")


def test_a_quick_run_and_no_run_twice(tmp_path, capsys):
    command = ["bench", "forgetting", "--quick", "--out", str(tmp_path), "--methods", *METHODS]
    assert main(command) == 0
    results = json.loads((tmp_path / "forgetting.json").read_text())
    assert sorted(result["method"] for result in results) == sorted(METHODS)
    for result in results:
        assert [[value is None for value in row] for row in result["alignment"]] == [[False, True], [False, False]]
        assert all(math.isfinite(result[name]) for name in COLUMNS)
        if result["recipe"]["applied"] != "everywhere" or result["recipe"]["rank"] == 0:
            assert result["base_damage"] == 0, "no prompt without the word can change"
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "forgetting").iterdir()}
    assert len(kept) == 2 * len(METHODS), "a file of numbers and a sheet each"
    longer = tmp_path / "forgetting" / "longer.json"
    longer.write_text(json.dumps(results[0] | {"subjects": ["ada", "bo", "cleo"]}))
    assert main(command) == 0
    assert json.loads((tmp_path / "forgetting.json").read_text()) == results, "another length is another benchmark"
    longer.unlink()
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "forgetting").iterdir()}
    assert (tmp_path / "forgetting.md").read_text().strip() in capsys.readouterr().out


def test_the_table_gives_means_and_their_intervals():
    results = [{"method": "one", **dict.fromkeys(COLUMNS, value)} for value in (0.2, 0.4, 0.6)]
    results.append({"method": "other", **dict.fromkeys(COLUMNS, 0.5)})
    lines = table_of(results).splitlines()
    student = 0.95 * (2 / (4 * 0.975 * 0.025)) ** 0.5  # the quantile of .975 with two degrees of freedom
    half = student * 0.2 / 3**0.5
    assert lines[2].startswith(f"| one | 0.4 ± {half:.2g} |") and lines[2].endswith("| 3 |")
    assert lines[3].startswith("| other | 0.5 |") and lines[3].endswith("| 1 |")


def test_what_a_track_does_not_measure_is_no_column():
    results = [{"method": "one", **{name: 0.5 for name in COLUMNS if name != "edited"}}]
    title, _, row = table_of(results).splitlines()
    assert COLUMNS["edited"] not in title and COLUMNS["traits"] in title
    assert title.count("|") == row.count("|")


def test_museum_maker_has_to_hold_styles_better_wherever_it_was_run():
    def runs(wording: str, **kept: float):
        values = {name.replace("_", "-") + wording: value for name, value in kept.items()}
        marks = dict.fromkeys(COLUMNS, 0.0)
        return [{**marks, "track": "styles", "method": name, "kept": value} for name, value in values.items()] * 3

    verdict = {name: judge for name, _, judge in HYPOTHESES}["H6a"]
    last = runs("", museum_maker=0.5, sequential=0.4, c_lora=0.3)
    assert verdict(last).startswith("Holds. ") and "museum-maker+first: not run" in verdict(last)
    assert verdict(last + runs("+first", museum_maker=0.5, sequential=0.6, c_lora=0.3)).startswith("Does not hold. ")
    assert verdict(last[:1]).startswith("Not decided")


def test_late_concepts_are_judged_on_the_longest_sequence_that_was_run_three_times():
    def runs(track: str, method: str, learned: list[float], times: int = 3):
        matrix = [
            [share if place == row else None for place in range(len(learned))] for row, share in enumerate(learned)
        ]
        return [{"track": track, "method": method, "alignment": matrix}] * times

    verdict = {name: judge for name, _, judge in HYPOTHESES}["H8"]
    ten = runs("identities", "c-lora", [1.0, 0.9, 0.7, 0.6]) + runs("identities", "orthogonal", [0.8, 0.8, 0.8, 0.8])
    assert verdict(ten).startswith("Holds. ") and "c-lora 0.30, orthogonal 0.00 (identities)" in verdict(ten)
    more = ten + runs("crowd", "c-lora", [0.9, 0.9]) + runs("crowd", "orthogonal", [0.9, 0.5], times=2)
    assert verdict(more) == verdict(ten)
    more += runs("crowd", "orthogonal", [0.9, 0.5], times=1)
    assert verdict(more).startswith("Does not hold. ") and "c-lora 0.00, orthogonal 0.40 (crowd)" in verdict(more)
    assert verdict(ten[:2]).startswith("Not decided")


@pytest.mark.parametrize("method", sorted(RECIPES))
def test_help_names_every_recipe(method: str, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "forgetting", "--help"])
    assert method in "".join(capsys.readouterr().out.split())
