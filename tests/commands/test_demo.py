"""The demo with its own numbers, of two of its three characters; the comparison doubles the work and is marked slow."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clora_core.cli import main
from clora_core.commands import demo as demo_command
from clora_core.errors import MuseumError
from clora_core.measure import forgetting, initial_alignment
from clora_core.method.recipe import Recipe
from clora_core.model.base import Fingerprint
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from clora_core.starter.course import Course, take_course
from clora_core.starter.exam import Examiner
from tests.museums import exhibit, projections

TWO = ("demo", "--concepts", "2")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, dict]:
    """The folder and the report of one whole run."""
    out = tmp_path_factory.mktemp("demo")
    assert main([*TWO, "--no-comparison", "--out", str(out), "--json", str(out / "again.json")]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads((out / "again.json").read_text())
    return out, report


def test_each_character_is_learned(demo):
    _, report = demo
    assert initial_alignment(report["alignment"]) >= 0.85, "chance is 0.1"
    assert initial_alignment(report["attributes"]) >= 0.65


def test_little_is_forgotten(demo):
    _, report = demo
    assert report["forgetting"] == pytest.approx(forgetting(report["alignment"]))
    assert report["forgetting"] <= 0.1


@pytest.mark.slow
def test_much_more_is_forgotten_without_the_regularizer(demo, tmp_path):
    _, report = demo
    assert main([*TWO, "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["alignment"] == report["alignment"], "the same inputs give the same museum"
    assert report["forgetting"] <= again["comparison"]["forgetting"] / 3, "else there is little to prevent"
    assert again["comparison"]["recipe"]["regularizers"] == []


def test_an_error_stops_the_comparison_too(tmp_path, monkeypatch, capsys):
    ended = []

    def short(examiner: Examiner, subjects: Sequence[str], recipe: Recipe, **more: Any) -> Course:
        samples = 600 if recipe.method == "sequential" else 1
        course = take_course(examiner, subjects, replace(recipe, steps=2), samples=samples, plain=1, **more)
        ended.append(recipe.method)
        return course

    def failing(*arguments: object, **more: object) -> Path:
        raise MuseumError("The disk is full.")

    monkeypatch.setattr(demo_command, "PLAIN", 1)
    monkeypatch.setattr(demo_command, "take_course", short)
    monkeypatch.setattr(demo_command, "save_museum", failing)
    assert main(["demo", "--concepts", "1", "--out", str(tmp_path)]) == 1
    assert "The disk is full." in capsys.readouterr().err
    assert ended == ["preservation"]


def test_report_has_the_documented_keys(demo):
    out, report = demo
    assert report["concepts"] == ["<gus>", "<hana>"]
    assert [[value is None for value in row] for row in report["alignment"]] == [[False, True], [False, False]]
    assert report["seconds"] > 0 and Path(report["museum"]) == out / "museum.safetensors"
    assert 0 < report["plain_prompts"]["after"] <= 1.1 and 0 < report["plain_prompts"]["before"] <= 1.1


def test_demo_writes_its_files(demo):
    out, report = demo
    assert load_museum(report["museum"]).words == tuple(report["concepts"])
    sheet = Image.open(out / "demo.png")
    assert sheet.width > 600 and sheet.height > 200


def test_too_many_characters_are_refused(capsys):
    assert main(["demo", "--concepts", "11"]) == 1
    assert "1 to 10" in capsys.readouterr().err


def test_foreign_museum_is_not_replaced(tmp_path, capsys):
    base = Fingerprint("starter", "0" * 64)
    mine = exhibit("<mine>", projections("starter"), seed=1, architecture="starter")
    save_museum(Museum(base, (mine,)), tmp_path / "museum.safetensors")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "holds <mine>, which is not the demo's" in capsys.readouterr().err
    assert load_museum(tmp_path / "museum.safetensors").words == ("<mine>",)
