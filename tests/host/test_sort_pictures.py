"""C-LoRA Sort Pictures: the same results as the command, and clear errors."""

import shutil
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from clora_pack.clora_core.classification.classify import classified
from clora_pack.clora_core.classification.file import save_task_museum
from clora_pack.clora_core.classification.learn import ClassPictures, TaskLearning
from clora_pack.clora_core.classification.museum import TaskMuseum
from clora_pack.clora_core.classification.recipe import METHODS
from clora_pack.clora_core.classification.vision import STARTER_FOLDER, Vision, open_vision
from clora_pack.clora_core.errors import CLoRAError
from clora_pack.clora_core.museum.file import save_museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter

from .models import random_museum
from .prompts import node
from .server import Server

COLORS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 1.0, 0.1), "blue": (0.1, 0.1, 1.0)}


@pytest.fixture(scope="module")
def vision() -> Vision:
    return open_vision("starter")


@pytest.fixture(scope="module")
def museum(vision: Vision) -> TaskMuseum:
    pixels = torch.stack([picture(color, 48, 48) for color in COLORS for _ in range(3)])
    images = (pixels * 255).round().to(torch.uint8).permute(0, 3, 1, 2)
    task = ClassPictures(tuple(COLORS), images, torch.arange(3).repeat_interleave(3))
    empty = TaskMuseum(vision.fingerprint)
    return empty.with_task(TaskLearning(vision, empty, task, METHODS["frozen"]).run())


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, museum: TaskMuseum) -> Path:
    for kind in ("museums", "clip_vision"):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
    save_task_museum(museum, tmp_path / "museums/colors.museum.safetensors")
    return tmp_path


def picture(color: str, height: int, width: int) -> torch.Tensor:
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height)) / 10
    return (torch.tensor(COLORS[color]) + noise).clamp(0, 1)


def sort(nodes: dict[str, Any], *images: torch.Tensor, museum: str = "colors.museum.safetensors", network="starter"):
    return nodes["CLoRA_SortPictures"].execute(list(images), [museum], [network]).args


def test_pictures_of_any_size_are_classified(nodes: dict[str, Any], vision: Vision, museum: TaskMuseum):
    batch = torch.stack([picture("red", 48, 48), picture("blue", 48, 48)])
    text, classes, shares = sort(nodes, batch, picture("green", 90, 60)[None])
    assert classes == ["red", "blue", "green"] and all(0 < share <= 1 for share in shares)
    expected = classified(vision, museum, (batch * 255).round().to(torch.uint8).permute(0, 3, 1, 2))
    assert text.splitlines()[:2] == list(map(str, expected))


def test_alpha_and_gray_are_accepted(nodes: dict[str, Any]):
    red = picture("red", 48, 48)
    assert sort(nodes, torch.cat([red, torch.ones(48, 48, 1)], dim=-1)[None])[1] == ["red"]
    assert len(sort(nodes, red[None, ..., :1])[1]) == 1
    half = torch.cat([red, torch.ones(48, 48, 1)], dim=-1)
    half[:24] = 0  # transparent, over black
    white = torch.cat([torch.ones(24, 48, 3), red[24:]])
    assert sort(nodes, half[None])[0] == sort(nodes, white[None])[0]  # as commands read such a file


def test_transformers_folder_is_a_network(nodes: dict[str, Any], folders: Path):
    shutil.copytree(STARTER_FOLDER, folders / "clip_vision/mine")
    assert sort(nodes, picture("red", 48, 48)[None], network="mine")[1] == ["red"]
    inputs = {socket.id: socket for socket in nodes["CLoRA_SortPictures"].define_schema().inputs}
    assert inputs["network"].options == ["starter", "mine"]


@pytest.mark.parametrize("name", ["", "..", "../mine", "/etc", "no\\such", "x" * 10_000])
def test_only_listed_folders_are_opened(nodes: dict[str, Any], folders: Path, name: str):
    shutil.copytree(STARTER_FOLDER, folders / "mine")
    with pytest.raises(CLoRAError, match="There is no vision transformer"):
        sort(nodes, picture("red", 48, 48)[None], network=name)


def test_museum_of_concepts_is_refused(nodes: dict[str, Any], folders: Path):
    with torch.inference_mode():
        starter = load_starter()
    save_museum(random_museum(HostBase(*starter), "<one>"), folders / "museums/concepts.museum.safetensors")
    with pytest.raises(CLoRAError, match="a museum of concepts"):
        sort(nodes, picture("red", 48, 48)[None], museum="concepts.museum.safetensors")
    with pytest.raises(CLoRAError, match="a museum of classes"):
        nodes["CLoRA_LoadMuseum"].execute(starter[0], starter[1], "colors.museum.safetensors", "", 1.0)


def test_input_that_is_no_picture_is_refused(nodes: dict[str, Any]):
    for images in ([], [torch.zeros(0, 8, 8, 3)], [torch.zeros(8, 8, 3)], [torch.zeros(1, 8, 8, 2)]):
        with pytest.raises(CLoRAError):
            sort(nodes, *images)
    with pytest.raises(CLoRAError, match="There is no museum"):
        sort(nodes, picture("red", 48, 48)[None], museum="none")


def test_node_runs_in_a_graph(server: Server, museum: TaskMuseum):
    folder = server.folder / "models/loras/museums"
    folder.mkdir(parents=True, exist_ok=True)
    if not (path := folder / "sorted.museum.safetensors").exists():
        save_task_museum(museum, path)
    prompt = {
        "pictures": node("EmptyImage", width=64, height=80, batch_size=2, color=0xFF2020),
        "sort": node("CLoRA_SortPictures", images=["pictures", 0], museum_name=path.name, network="starter"),
        "text": node("PreviewAny", source=["sort", 0]),
        "class": node("PreviewAny", source=["sort", 1]),
    }
    run = server.run(prompt)
    assert run.succeeded, run.error
    assert run.history["outputs"]["sort"]["text"] == run.history["outputs"]["text"]["text"]
    assert run.history["outputs"]["text"]["text"][0].count("red ") == 2
    assert run.history["outputs"]["class"]["text"] == ["red", "red"]
    assert "sort" in server.run(prompt).cached
