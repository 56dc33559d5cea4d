"""Writing a museum: whole or not at all, and nothing that was there is lost."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clora_core.concept import ConceptToken
from clora_core.errors import MuseumError
from clora_core.low_rank import LowRank
from clora_core.museum import Museum
from clora_core.projections import Projection
from clora_core.storage import load_museum, save_museum
from clora_core.storage.files import backup_of

from .museums import assert_same, exhibit, museum, projections


def test_an_existing_file_is_not_overwritten_unless_asked(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(MuseumError, match=r"a\.safetensors: A file of this name exists.*overwrite"):
        save_museum(museum(), path)
    assert path.read_bytes() == b"precious"
    save_museum(museum(), path, overwrite=True)
    assert_same(museum(), load_museum(path))
    assert backup_of(path).read_bytes() == b"precious"
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert_same(museum(), load_museum(backup_of(path)))
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "a.bak.safetensors"}


def test_a_backup_that_is_the_same_file_is_no_obstacle(tmp_path):
    """What a process leaves that dies between keeping the old file and putting the new one."""
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    os.link(path, backup_of(path))
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert_same(museum(), load_museum(backup_of(path)))
    assert len(list(tmp_path.iterdir())) == 2


def test_file_systems_without_hard_links_serve_too(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    with pytest.raises(MuseumError, match="exists"):
        save_museum(museum(), path)
    save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert_same(museum(), load_museum(backup_of(path)))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MuseumError, match=r"a\.safetensors: No space left on device"):
        save_museum(museum().only(["<ink>"]), path, overwrite=True)
    assert_same(museum(), load_museum(path))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_link_stays_a_link(tmp_path):
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
        ("a\0b.safetensors", "no printable character"),
        ("a\nb.safetensors", "no printable character"),
        ("a\udcffb.safetensors", "no printable character"),
        ("x" * 300 + ".safetensors", "too long"),
        ("folder.safetensors", "folder has this name"),
        ("", "must end in"),
    ],
)
def test_odd_names_are_refused(name, rule, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(MuseumError, match=rule):
        save_museum(museum(), tmp_path / name, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MuseumError, match="permissions"):
        save_museum(museum(), tmp_path / "a.safetensors")
    tmp_path.chmod(0o700)


def test_a_museum_that_no_file_can_hold_is_refused(tmp_path):
    on = projections("sd15")
    base = museum().base
    plain = exhibit("<x>", on, seed=1)
    double = ConceptToken("<x>", {"clip_l": torch.ones(1, 1, 768, dtype=torch.float64)})
    misfit = {on[0]: LowRank(torch.ones(3, 1), torch.ones(1, 768))}
    nan = exhibit("<x>", on, seed=1)
    nan.deltas[on[0]].up[0, 0] = float("nan")
    for kept, rule in (
        (exhibit("<x>", on, seed=1, architecture="sdxl"), "widths"),
        (exhibit("<x>", projections("sdxl"), seed=1), "width 2048"),
        (exhibit("<x>", on, seed=1, thumbnail=b"x" * 300_000), "thumbnail"),
        (exhibit("<x>", on, seed=1, facts={"when": object()}), "JSON"),
        (exhibit("<x>", on, seed=1, facts={"loss": float("nan")}), "JSON"),
        (exhibit("<x>", on, seed=1, prompt="\ud800"), "JSON"),
        (exhibit("<x>", on, seed=1, ranks=(0,)), "rank 0"),
        (exhibit("<x>", [Projection("some.linear", "key", (32, 768))], seed=1), "no key or value projection"),
        (exhibit("<x>", [on[0], Projection(on[0].path, "key", (16, 768))], seed=1), "2 times"),
        (exhibit("a\0b", on, seed=1), "printable"),
        (nan, "not finite"),
        (replace(plain, deltas=misfit), "has shape"),
        (replace(plain, token=double), "float64"),
    ):
        with pytest.raises(MuseumError, match=rule):
            save_museum(Museum(base, (kept,)), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills a forked process")
def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    one = museum()
    other = Museum(one.base, tuple(exhibit(f"<w{i}>", projections("sd15"), seed=i, ranks=(16,)) for i in range(6)))
    save_museum(one, path)
    rng = random.Random(0)
    seen = set()
    for kills in range(200):
        if kills >= 20 and len(seen) == 2:  # how long it takes to write both depends on the machine
            break
        turns = (one, other) if kills % 2 else (other, one)
        victim = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(path, *turns))
        victim.start()
        time.sleep(rng.uniform(0.005, 0.15) * (1 + kills / 20))
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        for kept in (path, backup_of(path)):
            if kept.exists():
                loaded = load_museum(kept)
                assert_same(one if loaded.words == one.words else other, loaded)
                seen.add(loaded.words)
        assert path.exists()
    assert seen == {one.words, other.words}
    names = {p.name for p in tmp_path.iterdir()} - {path.name, backup_of(path).name}
    assert all(name.startswith(".clora-") and name.endswith(".tmp") for name in names)


def _save_for_ever(path: Path, *museums: Museum) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork; waiting for them would never end
    while True:
        for each in museums:
            save_museum(each, path, overwrite=True)
