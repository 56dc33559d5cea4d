"""C-LoRA Edit Museum: what it returns, as the other nodes save and show it, and as ComfyUI's own loader shows it."""

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError, CLoRAError, MuseumError
from clora_pack.clora_core.museum.file import load_museum
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.clora_core.pictures import thumbnail
from clora_pack.nodes.actions import museums
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import same_museum, view

from .layouts import assert_same_move, layout_models, moved, stock_view
from .models import FAMILIES, Models, random_museum


@pytest.fixture(autouse=True)
def museum_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "museums", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


@pytest.fixture(scope="module")
def starter() -> Models:
    with torch.inference_mode():
        return load_starter()


@pytest.fixture(scope="module")
def museum(starter: Models) -> Museum:
    return random_museum(HostBase(*starter), "<one>", "<two>", "<three>")


def edit(nodes: dict[str, Any], *inputs: Any, **more: Any) -> Museum:
    return nodes["CLoRA_EditMuseum"].execute(*inputs, **more).args[0]


def test_edits_run_in_order_and_leave_the_input_unchanged(nodes: dict[str, Any], museum: Museum):
    before = museum.exhibits
    after = edit(nodes, museum, "\nrename <two> <zwei>\n  move <zwei> 1\n\nstrength <zwei> 0.5\nremove <one>\n")
    assert after.words == ("<zwei>", "<three>") and after.exhibits[0].strength == 0.5
    assert museum.words == ("<one>", "<two>", "<three>") and museum.exhibits is before
    assert after.exhibits[0].deltas is museum.exhibits[1].deltas and after.exhibits[1] is museum.exhibits[2]
    assert edit(nodes, museum, "  \n").exhibits == museum.exhibits


def test_removal_reports_its_effect(museum: Museum):
    _, summary = museums.edit(museum, "remove <one>", None, ())
    assert "<two> 0." in summary and "<three> 0." in summary and summary.endswith("The museum contains: <two>, <three>")


def test_edits_run_before_the_merge(nodes: dict[str, Any], starter: Models, museum: Museum):
    other = random_museum(HostBase(*starter), "<two>", "<four>")
    with pytest.raises(MuseumError, match="rename <two> <two-2>"):
        edit(nodes, museum, "", other)
    assert edit(nodes, museum, "rename <two> <two-2>", other).words == (
        "<one>",
        "<two-2>",
        "<three>",
        "<two>",
        "<four>",
    )
    assert same_museum(edit(nodes, museum.only(["<one>"]), "", museum), museum)


def test_thumbnail_comes_from_the_connected_images(nodes: dict[str, Any], museum: Museum):
    images = torch.zeros(2, 64, 64, 3)
    images[1, ..., 0] = 1
    black, red = (thumbnail(picture.permute(2, 0, 1) * 2 - 1) for picture in images)
    after = edit(nodes, museum, "thumbnail <one> 2\nthumbnail <two>", images=images)
    assert [exhibit.thumbnail for exhibit in after.exhibits[:2]] == [red, black]
    stacks = [torch.zeros(2, 8, 16, 3), images[1:]]  # a list, as Load Pictures outputs
    assert edit(nodes, museum, "thumbnail <one> 3", images=stacks).exhibits[0].thumbnail == red


@pytest.mark.parametrize(
    ("edits", "rule"),
    [
        ("rename <one>", "not a valid edit"),
        ("remove <four>", "<four>"),
        ("rename <one> <two>", "<two>"),
        ("strength <one> loud", "not a number"),
        ("thumbnail <one>", "0 images"),
        ("thumbnail <one> -1", "the first is number 1"),
        ("thumbnail <four> 1", "0 images"),
        ("remove <one>\nremove <one>", "<one>"),
    ],
)
def test_invalid_edit_raises_a_clear_error(nodes: dict[str, Any], museum: Museum, edits: str, rule: str):
    with pytest.raises(CLoRAError, match=rule):
        edit(nodes, museum, edits)


def test_strength_is_saved_loaded_and_applied(nodes: dict[str, Any], starter: Models, museum: Museum):
    after = edit(nodes, museum, "strength <one> 0.5\nstrength <two> 0")
    nodes["CLoRA_SaveMuseum"].execute(after, "mine", False)
    model, clip, _ = starter
    shown, _, loaded = nodes["CLoRA_LoadMuseum"].execute(model, clip, "mine.museum.safetensors", "<one>: 3", 1.0).args
    assert loaded.exhibits[0].strength == 0.5
    assert_same_move(shown, view(model, clip, museum.only(["<one>"]), {"<one>": 1.5})[0])
    every, _, loaded = nodes["CLoRA_LoadMuseum"].execute(model, clip, "mine.museum.safetensors", "", 1.0).args
    assert same_museum(loaded, after) and not same_museum(loaded, museum)
    assert_same_move(every, view(model, clip, museum, {"<one>": 0.5, "<two>": 0.0})[0])


def test_model_that_shows_the_unedited_museum_is_refused(nodes: dict[str, Any], starter: Models, museum: Museum):
    model, clip, _ = starter
    shown, speaking = view(model, clip, museum)
    for edits in ("strength <one> 0.5", "rename <one> <eins>", "remove <one>", "move <one> 3"):
        with pytest.raises(BaseModelError, match="already shows a museum"):
            view(shown, speaking, edit(nodes, museum, edits))
    again, _ = view(shown, speaking, edit(nodes, museum, "thumbnail <one>", images=torch.zeros(1, 8, 8, 3)))
    assert_same_move(again, shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_load_lora_applies_every_exhibit_at_its_strength(nodes: dict[str, Any], family: str, museum_folder: Path):
    model, clip, vae = layout_models(family)
    whole = random_museum(HostBase(model, clip, vae), "<one>", "<two>", "<three>")
    after = edit(nodes, whole, "strength <one> 0.3\nstrength <two> -1.5")
    nodes["CLoRA_SaveMuseum"].execute(after, "mine", False)
    shown, _ = view(model, clip, load_museum(museum_folder / "mine.museum.safetensors"))
    stock = stock_view(model, museum_folder / "mine.museum.safetensors")
    assert len(moved(stock)) == len(whole.exhibits[0].deltas)
    assert_same_move(stock, shown)
    assert_same_move(stock, view(model, clip, whole, {"<one>": 0.3, "<two>": -1.5})[0])
