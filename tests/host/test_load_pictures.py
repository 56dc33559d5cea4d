"""C-LoRA Load Pictures: a folder of the input folder, as a Train Step takes it."""

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from clora_pack.clora_core.errors import CLoRAError
from PIL import Image

from .prompts import concept, node
from .server import Server

SIZES = {"1.png": (96, 64), "2.JPG": (64, 96), "sub/3.webp": (64, 64)}


def fill(folder: Path) -> None:
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * number, 200, 90)).save(folder / name)
    mask = Image.new("L", (48, 32), 0)
    mask.paste(255, (0, 0, 24, 32))
    mask.save(folder / "1.mask.png")
    (folder / "1.txt").write_text("a photo of {word}\non grass")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    fill(tmp_path / "input/my-cat")
    return tmp_path / "input/my-cat"


def test_pictures_keep_their_shapes_and_captions(nodes: dict[str, Any], folder: Path):
    output = nodes["CLoRA_LoadPictures"].execute("my-cat")
    images, captions, masks = output.args
    assert [tuple(image.shape) for image in images] == [(1, h, w, 3) for w, h in SIZES.values()]
    assert captions == ["a photo of {word}\non grass", "", ""]
    assert [mask.shape[1:] for mask in masks] == [image.shape[1:3] for image in images]
    assert masks[0][:, :, :40].min() == 1 and not masks[0][:, :, 56:].any() and not any(map(torch.any, masks[1:]))
    (text,) = output.ui["text"]
    assert "3 pictures, 1 with a caption" in text and "Thumbs.db" in text and "broken.png" in text
    assert len(output.ui["images"]) == 3


def test_repeats_count_and_a_broken_mask_excludes_its_picture(nodes: dict[str, Any], folder: Path):
    (folder / "3_cat").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "3_cat/4.png")
    (folder / "2.mask.png").write_bytes(b"")
    Image.new("L", (8, 8), 0).save(folder / "sub/3.mask.png")
    output = nodes["CLoRA_LoadPictures"].execute("my-cat")
    assert [tuple(image.shape[1:3]) for image in output.args[0]] == [(64, 96), *[(32, 32)] * 3, (64, 64)]
    assert {len(values) for values in output.args} == {5}
    (text,) = output.ui["text"]
    assert "3 pictures, 5 with repeats, 1 with a caption" in text and "Its mask selects nothing" in text
    assert "its mask 2.mask.png cannot be read" in text and len(output.ui["images"]) == 3


def test_large_pictures_are_scaled_down(nodes: dict[str, Any], folder: Path):
    Image.new("RGB", (3000, 1500)).save(folder / "0.png")
    image = nodes["CLoRA_LoadPictures"].execute("my-cat").args[0][0]
    height, width = image.shape[1:3]
    assert height * width <= 1.001 * 1024**2 and abs(width - 2 * height) <= 1


@pytest.mark.parametrize("name", ["", "..", "../input", "/etc", "no such", "my-cat/../my-cat", "x" * 10_000])
def test_only_folders_of_the_input_folder_are_read(nodes: dict[str, Any], folder: Path, name: str):
    with pytest.raises(CLoRAError, match="There is no folder"):
        nodes["CLoRA_LoadPictures"].execute(name)


def test_single_files_can_be_chosen(nodes: dict[str, Any], folder: Path):
    kind = nodes["CLoRA_LoadPictures"]
    images, captions, masks = kind.execute("my-cat", "sub/3.webp\n\n 1.png ").args
    assert [tuple(image.shape[1:3]) for image in images] == [(64, 64), (64, 96)]
    assert captions == ["", "a photo of {word}\non grass"] and masks[1].any()
    assert len(kind.execute("", "my-cat/1.png").args[0]) == 1
    before = kind.fingerprint_inputs("", "my-cat/1.png")
    (folder / "1.txt").write_text("another {word}")
    assert kind.fingerprint_inputs("", "my-cat/1.png") != before


@pytest.mark.parametrize("name", ["no.png", "../secret.png", "/etc/hosts", "sub", "x" * 10_000, "a\0b"])
def test_only_files_of_the_input_folder_are_read(nodes: dict[str, Any], folder: Path, name: str):
    Image.new("RGB", (8, 8)).save(folder.parent.parent / "secret.png")
    with pytest.raises(CLoRAError, match="There is no file"):
        nodes["CLoRA_LoadPictures"].execute("my-cat", name)
    with pytest.raises(CLoRAError, match="There is no file"):
        nodes["CLoRA_LoadPictures"].execute("", f"../{name}")


def test_folders_are_listed_and_new_files_are_noticed(nodes: dict[str, Any], folder: Path):
    kind = nodes["CLoRA_LoadPictures"]
    assert kind.define_schema().inputs[0].options == ["my-cat", "my-cat/sub"]
    asked = [("my-cat", ""), ("my-cat", None), (None, "")]  # None: of a linked input
    before = [kind.fingerprint_inputs(*inputs) for inputs in asked]
    assert before == [kind.fingerprint_inputs(*inputs) for inputs in asked]
    Image.new("RGB", (8, 8)).save(folder / "4.png")
    assert all(kind.fingerprint_inputs(*inputs) != old for inputs, old in zip(asked, before, strict=True))


def test_folder_is_learned_in_a_graph(server: Server):
    fill(server.folder / "input/of-shapes")
    prompt = {
        "base": node("CLoRA_StarterModel"),
        "pictures": node("CLoRA_LoadPictures", folder="of-shapes"),
        "token": concept("<shapes>"),
        "train": node(
            "CLoRA_TrainStep",
            model=["base", 0],
            clip=["base", 1],
            vae=["base", 2],
            images=["pictures", 0],
            captions=["pictures", 1],
            masks=["pictures", 2],
            concept=["token", 0],
            steps=4,
            learning_rate=0.006,
            rank=4,
            batch_size=2,
            forgetting_weight=1.0,
            training_seed=0,
            preview_every=0,
        ),
        "save": node("CLoRA_SaveMuseum", museum=["train", 2], name="shapes", overwrite=True),
    }
    run = server.run(prompt)
    assert run.succeeded, run.error
    assert "shapes>" in run.history["outputs"]["save"]["text"][0]
