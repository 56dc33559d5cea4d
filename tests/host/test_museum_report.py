"""The Museum Report node in this process, over real models in ComfyUI's own classes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from clora_pack import comfy_entrypoint
from clora_pack.clora_core.errors import CLoRAError
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.folders import new_output_path
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import view
from clora_pack.nodes.museum_report import MuseumReport

from .models import INTERRUPTED, Models, denoised, ordinary, random_museum, small_models

FEW = {"pictures": 1, "everyday": 1, "sampling_steps": 1, "report_seed": 0, "name": "people/mine"}


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is written is each test's own."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return tmp_path / "output"


@pytest.fixture
def report() -> Callable[..., Any]:
    """The node as ComfyUI is given it."""
    listed = asyncio.run(asyncio.run(comfy_entrypoint()).get_node_list())
    assert MuseumReport in listed

    def run(models: Models, museum: Any, **changes: Any) -> Any:
        model, clip, vae = models
        return MuseumReport.execute(model, clip, vae, museum, **(FEW | changes))

    return run


@pytest.mark.parametrize("models", [load_starter, lambda: small_models("sd15")], ids=["starter", "sd15"])
def test_report_returns_figures_and_a_page_and_keeps_the_model(
    report: Callable[..., Any], models: Callable[[], Models], output: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(HostBase, "resolution_px", 64)
    model, clip, vae = models()
    with ordinary():
        museum = random_museum(HostBase(model, clip), "<one>", "<two>")
    states = clip.encode_from_tokens(clip.tokenize("a cat"))
    before = denoised(model, states)
    answer = report((model, clip, vae), museum)
    assert len(answer.args) == 3
    for figure in answer.args:
        assert figure.ndim == 4 and figure.shape[0] == 1 and figure.shape[3] == 3
        assert 0 <= figure.min() < figure.max() <= 1
    (page,) = (output / "people").glob("mine_*.html")
    text = page.read_text(encoding="utf-8")
    assert "&lt;one&gt;" in text and "<script" not in text
    assert len(answer.ui["images"]) == 3 and str(page) in answer.ui["text"][0]
    assert torch.equal(denoised(model, states), before)

    viewing = report((*view(model, clip, museum), vae), museum)
    assert all(torch.equal(one, other) for one, other in zip(answer.args, viewing.args, strict=True))
    first, second = sorted((output / "people").glob("mine_*.html"))
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")


def test_cancel_stops_the_report_and_nothing_is_written(
    report: Callable[..., Any], output: Path, monkeypatch: pytest.MonkeyPatch
):
    models = load_starter()
    with ordinary():
        museum = random_museum(HostBase(*models), "<one>")
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(INTERRUPTED):
        report(models, museum)
    assert not list(output.rglob("*.html"))


def test_page_that_cannot_be_written_does_not_cost_the_figures(
    report: Callable[..., Any], output: Path, monkeypatch: pytest.MonkeyPatch
):
    models = load_starter()
    with ordinary():
        museum = random_museum(HostBase(*models), "<one>")

    def full(path: Path, *arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    answer = report(models, museum)
    assert len(answer.args) == 3 and "No space left on device. The figures are complete." in answer.ui["text"][0]


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "", "a\0b", "report 12:30", "x" * 300])
def test_reports_stay_in_the_output_folder(output: Path, name: str):
    with pytest.raises(CLoRAError, match="not a valid file name"):
        new_output_path(name, ".html")
