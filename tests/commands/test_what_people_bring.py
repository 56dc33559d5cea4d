"""Words, files and disks as people have them: problems are reported before training starts."""

import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clora_core.cli import main
from clora_core.commands import training
from clora_core.errors import BaseModelError, MuseumError
from clora_core.model.base import Fingerprint
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.file.importing import read_embedding
from tests.museums import museum

FEW = ["--steps", "1", "--rank", "2", "--batch-size", "1"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(folder / "1.png")
    Image.new("RGB", (64, 96), (200, 30, 30)).save(folder / "2.jpg")
    return folder


def teach(museum: Path, images: Path, word: str = "<a>", base: str | Path = "starter") -> int:
    return main(["learn", "--base", str(base), "--museum", str(museum), "--word", word, "--images", str(images), *FEW])


def test_pictures_of_several_shapes_are_learned(tmp_path: Path, images: Path, capsys):
    assert teach(tmp_path / "m.safetensors", images) == 0
    assert f"2 pictures in '{images}', in 2 sizes." in capsys.readouterr().out


def test_known_word_is_reported_and_recorded(tmp_path: Path, images: Path, capsys):
    museum = tmp_path / "m.safetensors"
    assert teach(museum, images, "cat") == 0
    assert "'cat' is already a word of this model" in capsys.readouterr().out
    assert teach(museum, images, "<my-cat>") == 0
    assert "already a word" not in capsys.readouterr().out
    facts = [exhibit.facts for exhibit in load_museum(museum).exhibits]
    assert facts[0]["known word"] is True and "known word" not in facts[1]


def test_view_checks_its_target_first_and_reports_weights(tmp_path: Path, images: Path, capsys, monkeypatch):
    museum = tmp_path / "m.safetensors"
    assert teach(museum, images) == 0
    monkeypatch.chdir(tmp_path)
    view = ["view", "--base", "starter", "--museum", str(museum), "--count", "1", "--steps", "1"]
    capsys.readouterr()
    assert main([*view, "--prompt", "<a>", "--out", "both"]) == 1
    captured = capsys.readouterr()
    assert "must end in the suffix of a picture" in captured.err and "sampling" not in captured.err
    assert main([*view, "--prompt", "<a>", "--out", "a.psd"]) == 1, "Pillow reads these, but does not write them"
    assert "must end in" in capsys.readouterr().err
    assert main([*view, "--prompt", "a photo of (<a>:1.2)", "--out", "a.png"]) == 0
    assert "weights like (<a>:1.2) work in ComfyUI" in capsys.readouterr().out
    assert main([*view, "--prompt", "a photo of (<a>) at 10:30", "--out", "a.png"]) == 0
    assert "weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"PK\3\4rest", "pickle or a zip"),
        (b"", "empty"),
    ],
)
def test_error_names_the_actual_kind_of_a_file(tmp_path: Path, images: Path, capsys, content: bytes, said: str):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert teach(tmp_path / "m.safetensors", images, base=tmp_path / "model.safetensors") == 1
    assert said in capsys.readouterr().err
    with pytest.raises(MuseumError, match=said):
        load_museum(tmp_path / "model.safetensors")


def test_embedding_can_have_two_files(tmp_path: Path):
    rng = torch.Generator().manual_seed(0)
    small, large = torch.randn(2, 768, generator=rng), torch.randn(2, 1280, generator=rng)
    save_file({"<toy>": small}, tmp_path / "1.safetensors")
    save_file({"<toy>": large}, tmp_path / "2.SAFETENSORS")
    for order in (("1.safetensors", "2.SAFETENSORS"), ("2.SAFETENSORS", "1.safetensors")):
        vectors = read_embedding(*(tmp_path / name for name in order))
        assert torch.equal(vectors["clip_l"], small[None]) and torch.equal(vectors["clip_g"], large[None])
    (tmp_path / "a.pt").touch()
    with pytest.raises(MuseumError, match=r"emb_params"):
        read_embedding(tmp_path / "a.pt")


def test_disk_space_is_checked_before_training(tmp_path: Path, images: Path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(1, 1, 1000))
    assert teach(tmp_path / "m.safetensors", images) == 1
    captured = capsys.readouterr()
    assert "Make room" in captured.err and "<a>" not in captured.err
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_file_size_limit_is_checked_before_training(tmp_path: Path, images: Path, capsys):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        code = teach(tmp_path / "m.safetensors", images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and "does not accept: File too large" in capsys.readouterr().err


def test_result_is_saved_elsewhere_if_the_museum_cannot_be_written(tmp_path: Path, images: Path, capsys, monkeypatch):
    def refused(*exhibits: object, **more: object) -> Path:
        raise MuseumError("It is full.") from OSError(28, "No space left on device")

    monkeypatch.setattr(training, "append_exhibits", refused)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert teach(tmp_path / "m.safetensors", images) == 1
    assert "What was learned is saved as" in capsys.readouterr().out
    (rescued,) = tmp_path.glob("clora-*/m.safetensors")
    assert load_museum(rescued).words == ("<a>",)


def test_museum_can_be_viewed_over_another_checkpoint(tmp_path: Path, images: Path, capsys):
    museum, tuned = tmp_path / "m.safetensors", tmp_path / "tuned.safetensors"
    assert teach(museum, images) == 0
    whole = load_museum(museum)
    save_museum(replace(whole, base=Fingerprint("starter", "0" * 64)), tuned)
    view = ["view", "--base", "starter", "--prompt", "<a>", "--count", "1", "--steps", "1", "--seed", "3"]
    for path in (museum, tuned):
        assert main([*view, "--museum", str(path), "--out", str(path.with_suffix(".png"))]) == 0
    assert "trained on another checkpoint" in capsys.readouterr().out
    assert museum.with_suffix(".png").read_bytes() == tuned.with_suffix(".png").read_bytes()
    assert teach(tuned, images, "<b>") == 1
    assert "only with its own base" in capsys.readouterr().err
    with pytest.raises(BaseModelError, match="made for"):
        whole.shown_over(Fingerprint("sd15", "0" * 64))


def test_first_reason_is_reported_if_nothing_can_be_written(tmp_path: Path, images: Path, capsys, monkeypatch):
    def refused(*exhibits: object, **more: object) -> Path:
        raise MuseumError("It is full.") from OSError(28, "No space left on device")

    monkeypatch.setattr(training, "append_exhibits", refused)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert teach(tmp_path / "m.safetensors", images) == 1
    assert "It is full." in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--size=0", "--size=7", "--guidance=nan", "--prompt=caf\udce9"])
def test_invalid_numbers_are_refused_before_sampling(tmp_path: Path, capsys, wrong: str):
    save_museum(museum("starter"), tmp_path / "m.safetensors")
    out = tmp_path / "a.png"
    view = [
        "view",
        "--base",
        "starter",
        "--museum",
        str(tmp_path / "m.safetensors"),
        "--prompt",
        "a",
        "--out",
        str(out),
    ]
    assert main([*view, "--steps", "1", "--count", "1", wrong]) == 1
    assert "error: " in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("resolution", ["-5", "0", "7", "100000"])
def test_invalid_resolution_is_refused(tmp_path: Path, images: Path, capsys, resolution: str):
    command = ["learn", "--base", "starter", "--museum", str(tmp_path / "m.safetensors"), "--word", "<a>"]
    assert main([*command, "--images", str(images), f"--resolution={resolution}", *FEW]) == 1
    assert f"--resolution is {resolution}; it must be 8 to 4096 pixels" in capsys.readouterr().err
