"""Museums are written atomically, and existing files are not lost."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import PurePath, PurePosixPath, PureWindowsPath

import pytest
import torch

from clora_core.errors import MuseumError
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.file import append_exhibits, backups, check_names, load_museum, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Museum
from tests.museums import assert_same, exhibit, museum, projections


def test_an_existing_file_is_overwritten_only_on_request(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(MuseumError, match=r"a\.safetensors: A file of this name already exists.*overwriting"):
        save_museum(museum(), path)
    assert path.read_bytes() == b"precious"
    save_museum(museum(), path, overwrite=True)
    assert_same(museum(), load_museum(path))
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    first, second = backups_of(path)
    assert first.read_bytes() == b"precious"
    assert_same(museum(), load_museum(second))
    assert set(tmp_path.iterdir()) == {path, first, second}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (PureWindowsPath(r"\museums\a.safetensors"), True),
        (PureWindowsPath("C:a.safetensors"), True),
        (PureWindowsPath(r"C:\con\a.safetensors"), True),
        (PureWindowsPath(r"\con\a.safetensors"), False),
        (PurePosixPath("con/a.safetensors"), False),
    ],
)
def test_paths_with_a_root_or_a_drive_are_allowed(path: PurePath, allowed: bool):
    with nullcontext() if allowed else pytest.raises(MuseumError, match="Windows reserves"):
        check_names(path)


def test_a_backup_linked_to_the_current_file_is_kept_once(tmp_path):
    """A process leaves such a link if it dies between keeping the old file and writing the new one."""
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    backups.keep(path, tmp_path / "unused")
    assert [backup.samefile(path) for backup in backups_of(path)] == [True]
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert [load_museum(backup).words for backup in backups_of(path)] == [museum().words]
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    with pytest.raises(MuseumError, match="exists"):
        save_museum(museum(), path)
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    (backup,) = backups_of(path)
    assert_same(museum(), load_museum(backup))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MuseumError, match=r"a\.safetensors: No space left on device"):
        save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert_same(museum(), load_museum(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_through_a_symbolic_link_keeps_the_link(tmp_path):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    save_museum(museum(), real)
    link.symlink_to(real)
    save_museum(museum().only(["<ink>"]), link, overwrite=True)
    assert link.is_symlink()
    assert load_museum(real).words == ("<ink>",)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("nowhere/a.safetensors", "no folder"),
        ("a.ckpt", r"must end in '\.safetensors'"),
        ("a\0b.safetensors", "is not printable"),
        ("a\nb.safetensors", "is not printable"),
        ("a\udcffb.safetensors", "is not printable"),
        ("cat\u202estnemunom.safetensors", "is not printable"),
        ("ca\u200bt.safetensors", "is not printable"),
        ("cat\u3164.safetensors", "is not printable"),
        ("x" * 300 + ".safetensors", "too long"),
        ("folder.safetensors", "folder has this name"),
        ("NUL.safetensors", "Windows reserves the name"),
        ("com1.museum.safetensors", "Windows reserves the name"),
        ("", "must end in"),
    ],
)
def test_invalid_file_names_are_refused(name, rule, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(MuseumError, match=rule):
        save_museum(museum(), tmp_path / name, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "木の博物館",
        "кот",
        "قطة",
        "😀 my cat's",
        "a;b$(c)`d`",
        "-rf",
        "null",
        "Ä" * 60,
        "sub/../up",
        ".hidden",
        "a.b.c",
        "گربه\u200cها",
        "👩\u200d🚀❤\ufe0f",
    ],
)
def test_file_names_of_any_alphabet_work(name, tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / f"{name}.safetensors"
    save_museum(museum().only(["<ink>"]), path)
    append_exhibits([museum().exhibits[2]], path, base=museum().base)
    assert_same(museum().only(["<ink>", "<bär>"]), load_museum(path))
    assert [load_museum(backup).words for backup in backups_of(path)] == [("<ink>",)]
    (tmp_path / "sub").rmdir()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_museum_that_cannot_be_stored_is_refused(tmp_path):
    on = projections("sd15")
    base = museum().base
    plain = exhibit("<x>", on, seed=1)
    double = ConceptToken("<x>", {"clip_l": torch.ones(1, 1, 768, dtype=torch.float64)})
    misfit = {on[0]: LowRank(torch.ones(3, 1), torch.ones(1, 768))}
    nan = exhibit("<x>", on, seed=1)
    nan.deltas[on[0]].up[0, 0] = float("nan")
    for kept, rule in (
        (exhibit("<x>", on, seed=1, architecture="sdxl"), "widths"),
        (exhibit("<x>", projections("sdxl"), seed=1), "width of 2048"),
        (exhibit("<x>", on, seed=1, thumbnail=b"\xff\xd8" + bytes(300_000)), "thumbnail has 300002 bytes"),
        (exhibit("<x>", on, seed=1, thumbnail=b"\xff\xd8" + b"\xff\xda" * 21), "21 scans"),
        (exhibit("<x>", on, seed=1, facts={"when": object()}), "JSON"),
        (exhibit("<x>", on, seed=1, facts={"loss": float("nan")}), "JSON"),
        (exhibit("<x>", on, seed=1, prompt="\ud800"), "JSON"),
        (exhibit("<x>", on, seed=1, ranks=(0,)), "rank 0"),
        (exhibit("<x>", [Projection("some.linear", "key", (32, 768))], seed=1), "not the path of a key"),
        (exhibit("<x>", [on[0], Projection(on[0].path, "key", (16, 768))], seed=1), "2 times"),
        (nan, "not finite"),
        (replace(plain, deltas=misfit), "has shape"),
        (replace(plain, token=double), "float64"),
    ):
        with pytest.raises(MuseumError, match=rule):
            save_museum(Museum(base, (kept,)), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
