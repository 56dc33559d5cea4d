"""C-LoRA Save Museum and Load Museum: between the graph and the folder of museums."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from clora_pack.clora_core.errors import ConceptError, MuseumError
from clora_pack.clora_core.museum.editing import with_thumbnail
from clora_pack.clora_core.museum.file import load_museum, replacing
from clora_pack.clora_core.museum.file.backups import backups_of
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.actions import museums
from clora_pack.nodes.host import folders, progress
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import same_museum, view

from .models import INTERRUPTED, Models, random_museum


@pytest.fixture(autouse=True)
def museum_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "museums", ([str(tmp_path / "museums")], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {}, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def starter() -> Models:
    with torch.inference_mode():
        return load_starter()


def test_museum_is_saved_and_loaded_in_part(nodes: dict[str, Any], starter: Models, museum_folder: Path):
    museum = random_museum(HostBase(*starter), "<one>", "<two>", "<three>")
    save, load = nodes["CLoRA_SaveMuseum"].execute, nodes["CLoRA_LoadMuseum"].execute
    save(museum, "people/mine", False)
    assert folders.museum_names() == ["people/mine.museum.safetensors"]
    name, (model, clip, _) = folders.museum_names()[0], starter
    all_of_it = load(model, clip, name, "", 1.0).args
    assert same_museum(all_of_it[2], museum)
    some = load(model, clip, name, "<three>\n<one>: 0.5\n", 2.0).args
    assert some[2].words == ("<one>", "<three>")
    expected, _ = view(model, clip, museum.only(["<one>", "<three>"]), {"<one>": 1.0, "<three>": 2.0})
    for key, ((_, adapter, *_),) in some[0].patches.items():
        assert torch.equal(
            adapter.weights[0] @ adapter.weights[1], expected.patches[key][0][1].weights[0] @ adapter.weights[1]
        )
    connected = load(model, clip, "", "<two>", 1.0, museum).args
    assert connected[2].words == ("<two>",)


def test_companion_shown_without_its_partner_is_reported(
    nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch
):
    """The exhibit that was learned with it holds its deltas; from a file, and from a connected museum."""
    warned: list[str] = []
    monkeypatch.setattr(museums, "warn", warned.append)
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    one, two = museum.exhibits
    museum = replace(museum, exhibits=(replace(one, deltas={}), two))
    nodes["CLoRA_SaveMuseum"].execute(museum, "mine", False)
    load = nodes["CLoRA_LoadMuseum"].execute
    for source in (None, museum):
        for chosen in ("", "<two>", "<one>\n<two>: 0.5"):
            load(*starter[:2], "mine.museum.safetensors", chosen, 1.0, source)
        assert not warned
        load(*starter[:2], "mine.museum.safetensors", "<one>", 1.0, source)
        assert "<one> needs <two> as well" in warned.pop()


def test_saving_again_works_but_another_museum_of_that_name_is_refused(nodes: dict[str, Any], starter: Models):
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    save = nodes["CLoRA_SaveMuseum"].execute
    save(museum, "mine", False)
    assert "already" in save(museum, "mine", False).ui.as_dict()["text"][0]
    with pytest.raises(MuseumError, match=r"already exists.*turn on overwrite, and press Run again"):
        save(museum.only(["<one>"]), "mine", False)
    weaker = replace(museum, exhibits=(replace(museum.exhibits[0], strength=0.5), museum.exhibits[1]))
    with pytest.raises(MuseumError, match="holds another version of <one> \\(of other"):
        save(weaker, "mine", True)
    whole = folders.museum_path("mine.museum.safetensors").read_bytes()
    assert "these and more" in save(museum.only(["<one>"]), "mine", True).ui.as_dict()["text"][0]
    with pytest.raises(MuseumError, match="holds <one>, <two>; the new museum \\(<two>\\) does not begin with"):
        save(museum.only(["<two>"]), "mine", True)
    assert folders.museum_path("mine.museum.safetensors").read_bytes() == whole
    shown = save(museum.only(["<one>"]), "mine", True, True).ui.as_dict()["text"][0]
    assert "safetensors: <one>" in shown.replace("\u2060", "")  # the joiner keeps old frontends from reading HTML
    assert folders.museum_names() == ["mine.museum.safetensors"]


def test_changed_thumbnail_or_prompt_is_saved(nodes: dict[str, Any], starter: Models):
    """People replace a picture before they share a file; the old one must not stay in it."""
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    save, (first, second) = nodes["CLoRA_SaveMuseum"].execute, museum.exhibits
    save(museum, "mine", False)
    for change in ({"thumbnail": b"\xff\xd8other"}, {"prompt": "a drawing of <one>"}):
        other = replace(museum, exhibits=(replace(first, **change), second))
        with pytest.raises(MuseumError, match="already exists"):
            save(other, "mine", False)
        assert "Saved" in save(other, "mine", True).ui.as_dict()["text"][0]
        assert same_museum(load_museum(folders.museum_path("mine.museum.safetensors")), museum)
    assert load_museum(folders.museum_path("mine.museum.safetensors")).exhibits[0].prompt == "a drawing of <one>"


def test_a_replaced_thumbnail_stays_when_the_museum_grows(nodes: dict[str, Any], starter: Models):
    """A graph that trains further still has the first picture, which is not to come back into a shared file."""
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    save, path = nodes["CLoRA_SaveMuseum"].execute, "mine.museum.safetensors"
    save(museum.only(["<one>"]), "mine", False)
    save(with_thumbnail(museum.only(["<one>"]), "<one>", b"\xff\xd8mine"), "mine", True)
    save(museum, "mine", True)
    assert load_museum(folders.museum_path(path)).exhibits[0].thumbnail == b"\xff\xd8mine"
    save(with_thumbnail(museum, "<one>", b"\xff\xd8newer"), "mine", True)
    assert load_museum(folders.museum_path(path)).exhibits[0].thumbnail == b"\xff\xd8newer"


def test_a_file_that_was_deleted_or_replaced_is_written_again(nodes: dict[str, Any], starter: Models):
    museum, node = random_museum(HostBase(*starter), "<one>", "<two>"), nodes["CLoRA_SaveMuseum"]
    before = node.fingerprint_inputs("mine", museum=None)
    node.execute(museum, "mine", False)
    saved = node.fingerprint_inputs("mine", museum=None)
    assert saved == node.fingerprint_inputs("mine", museum=None) != before
    node.execute(museum.only(["<two>"]), "mine", True, True)
    assert node.fingerprint_inputs("mine", museum=None) not in (before, saved)
    folders.museum_path("mine.museum.safetensors").unlink()
    assert node.fingerprint_inputs("mine", museum=None) == before == node.fingerprint_inputs("../out", museum=None)


def test_a_graph_that_extends_its_own_file_can_run_again(
    nodes: dict[str, Any], starter: Models, own_results: Path, monkeypatch: pytest.MonkeyPatch
):
    """Load Museum, two Train Steps and Save Museum of the same name: the second time, the file has both words."""
    few = {"steps": 2, "learning_rate": 1e-2, "rank": 2, "batch_size": 2, "forgetting_weight": 1.0, "training_seed": 0}
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def teach(museum: Museum, *words: str, **changes: Any) -> Museum:
        model, clip, shown = nodes["CLoRA_LoadMuseum"].execute(*starter[:2], "mine.museum.safetensors", "", 1.0).args
        assert same_museum(shown, museum)
        for word in words:
            token = nodes["CLoRA_ConceptToken"].execute(word, "object", "a photo of {word}", 1, "", 0).args[0]
            step = nodes["CLoRA_TrainStep"].execute(
                model, clip, starter[2], images=images, concept=token, preview_every=0, museum=shown, **(few | changes)
            )
            model, clip, shown = step.args[:3]
        nodes["CLoRA_SaveMuseum"].execute(shown, "mine", True)
        return shown

    begun = random_museum(HostBase(*starter), "<one>")
    nodes["CLoRA_SaveMuseum"].execute(begun, "mine", False)
    both = teach(begun, "<two>", "<three>")
    assert both.words == ("<one>", "<two>", "<three>")
    with pytest.raises(ConceptError, match="'<two>' already names exhibit 2"):
        teach(both, "<two>", steps=3)
    monkeypatch.setattr(HostBase, "predict", None)  # nothing may be trained
    assert same_museum(teach(both, "<two>", "<three>"), both)
    assert same_museum(teach(both, "<three>"), both)
    for file in own_results.iterdir():
        file.unlink()
    with pytest.raises(ConceptError, match="'<three>' already names exhibit 3"):
        teach(both, "<three>")


def test_saving_an_identical_museum_keeps_the_earlier_backup(nodes: dict[str, Any], starter: Models):
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    save = nodes["CLoRA_SaveMuseum"].execute
    for saved in (museum.only(["<one>"]), museum, museum):
        text = save(saved, "mine", True).ui.as_dict()["text"][0]
    assert "already" in text
    backups = backups_of(folders.museum_path("mine.museum.safetensors"))
    assert [load_museum(backup).words for backup in backups] == [("<one>",)]


def test_load_museum_is_usable_without_any_file(nodes: dict[str, Any], starter: Models):
    """An empty list of names would be no input at all, and the node could not even show what is connected."""
    load = nodes["CLoRA_LoadMuseum"]
    names = next(field for field in load.GET_SCHEMA().inputs if field.id == "museum_name").options
    assert names == [""] and load.validate_inputs(names[0]) and load.fingerprint_inputs(names[0]) == ""
    museum = random_museum(HostBase(*starter), "<one>")
    assert load.execute(*starter[:2], names[0], "", 1.0, museum).args[2].words == ("<one>",)


@pytest.mark.parametrize("strength", ["nan", "inf", "-1000", "much"])
def test_invalid_strength_is_refused(nodes: dict[str, Any], starter: Models, strength: str):
    museum = random_museum(HostBase(*starter), "<one>")
    with pytest.raises(MuseumError, match="a strength from -100 to 100"):
        nodes["CLoRA_LoadMuseum"].execute(*starter[:2], "", f"<one>: {strength}", 1.0, museum)


OUTSIDE = ["", "../mine", "/etc/mine", "a/../../mine", "..\\mine", "C:\\mine", "a//b", "a\0b", "x" * 300]
OUTSIDE += ["con/x", "com¹", "lpt1.txt", "aux", "people./x", "mine?"]  # on Windows


@pytest.mark.parametrize("name", OUTSIDE)
def test_museum_cannot_leave_its_folder(nodes: dict[str, Any], starter: Models, museum_folder: Path, name: str):
    museum = random_museum(HostBase(*starter), "<one>")
    with pytest.raises(MuseumError):
        nodes["CLoRA_SaveMuseum"].execute(museum, name, True)
    assert not list(museum_folder.rglob("*.safetensors"))
    assert isinstance(nodes["CLoRA_SaveMuseum"].validate_inputs(name), str), "said before anything is trained"


def test_invisible_characters_are_removed_from_names(nodes: dict[str, Any], starter: Models, museum_folder: Path):
    museum = random_museum(HostBase(*starter), "<one>")
    nodes["CLoRA_SaveMuseum"].execute(museum, "peo\u200bple/mi\u202ene\u3164", False)
    assert [path.name for path in museum_folder.rglob("*.safetensors")] == ["mine.museum.safetensors"]
    assert folders.new_output_path("re\u202eport\u200b", ".html").name.startswith("report_")


def test_name_and_disk_are_checked_when_the_prompt_is_queued(
    nodes: dict[str, Any], museum_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    check = nodes["CLoRA_SaveMuseum"].validate_inputs
    assert check("people/mine") is True and check(None) is True
    assert not list(museum_folder.iterdir()), "a check makes no folder"
    usage = shutil.disk_usage(museum_folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=5 * 2**20))
    assert "Only 5 MiB are free" in check("mine")


@pytest.mark.parametrize("name", ["", "none.safetensors", "../../etc/passwd"])
def test_missing_museum_raises_a_clear_error(nodes: dict[str, Any], starter: Models, name: str):
    with pytest.raises(MuseumError, match=r"There is no museum|No museum is chosen"):
        nodes["CLoRA_LoadMuseum"].execute(starter[0], starter[1], name, "", 1.0)


def test_changed_file_is_loaded_again(nodes: dict[str, Any], starter: Models):
    museum = random_museum(HostBase(*starter), "<one>", "<two>")
    load, save = nodes["CLoRA_LoadMuseum"], nodes["CLoRA_SaveMuseum"].execute
    save(museum, "mine", False)
    before = load.fingerprint_inputs("mine.museum.safetensors")
    assert before == load.fingerprint_inputs("mine.museum.safetensors")
    of_any = load.fingerprint_inputs(None)  # of a linked input
    assert of_any == load.fingerprint_inputs(None)
    save(museum.only(["<two>"]), "mine", True, True)
    assert before != load.fingerprint_inputs("mine.museum.safetensors") and of_any != load.fingerprint_inputs(None)


def test_other_museum_with_the_same_name_and_time_is_loaded_again(nodes: dict[str, Any], starter: Models):
    load, save = nodes["CLoRA_LoadMuseum"], nodes["CLoRA_SaveMuseum"].execute
    museum = random_museum(HostBase(*starter), "<one>")
    save(museum, "mine", False)
    path = folders.museum_path("mine.museum.safetensors")
    before, times = load.fingerprint_inputs(path.name), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    os.utime(path, (1000, 1000))
    assert load.fingerprint_inputs(path.name) == before
    delta = next(iter(museum.exhibits[0].deltas.values()))
    delta.up[0, 0] += 1
    save(museum, "mine", True, True)
    os.utime(path, ns=times)
    assert load.fingerprint_inputs(path.name) != before


def test_waiting_for_another_program_is_shown_and_can_be_cancelled(
    nodes: dict[str, Any], starter: Models, museum_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(replacing, "PATIENCE_S", 0.05)
    messages: list[str] = []

    def say(text: str) -> None:
        messages.append(text)
        comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(progress, "say", say)
    (museum_folder / "museums").mkdir()
    descriptor = os.open(museum_folder / "museums", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(INTERRUPTED):
            nodes["CLoRA_SaveMuseum"].execute(random_museum(HostBase(*starter), "<one>"), "mine", False)
    finally:
        os.close(descriptor)
        comfy.model_management.interrupt_current_processing(False)
    assert messages == ["Another program is writing in this folder; waiting."]
    assert not list((museum_folder / "museums").iterdir())
