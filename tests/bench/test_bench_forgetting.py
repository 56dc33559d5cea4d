"""`bench forgetting` runs every recipe, resumes after a stop, and averages its metrics."""

import json
import math
from pathlib import Path

import pytest

from clora_core.bench.forgetting_table import table_of, tables_of
from clora_core.bench.methods import is_joint, method_recipe
from clora_core.bench.runs import COLUMNS
from clora_core.cli import main
from clora_core.method.recipe import BASELINES, RECIPES

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
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


def test_metrics_that_a_track_lacks_are_no_columns():
    results = [{"method": "one", **{name: 0.5 for name in COLUMNS if name != "edited"}}]
    title, _, row = table_of(results).splitlines()
    assert COLUMNS["edited"] not in title and COLUMNS["traits"] in title
    assert title.count("|") == row.count("|")


def test_the_names_of_published_runs_still_mean_the_same_recipes():
    """Weights and rates: the tables are of the recipes as they are, times the factor in the name."""
    published = [json.loads(path.read_text()) for path in (RESULTS / "forgetting").glob("*.json")]
    assert {"c-lora", "c-lora*0.1", "ewc", "c-lora-rows"} <= {run["method"] for run in published}
    for run in published:
        now, then = method_recipe(run["method"], seed=run["seed"])[0].to_json(), run["recipe"]
        for name in ("regularizers", "rank", "learning_rate", "token_learning_rate"):
            if not (name == "rank" and is_joint(run["method"])):
                same = now[name] == then[name] if name == "regularizers" else math.isclose(now[name], then[name])
                assert same, (run["method"], name)


def test_the_published_tables_are_those_of_the_published_runs():
    assert tables_of(json.loads((RESULTS / "forgetting.json").read_text())) + "\n" == (
        (RESULTS / "forgetting.md").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("method", RECIPES | BASELINES)
def test_help_names_every_recipe(method: str, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "forgetting", "--help"])
    assert method in "".join(capsys.readouterr().out.split())
