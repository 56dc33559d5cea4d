"""Backups, leftovers of killed processes, and folders that another process locks."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clora_core.errors import MuseumError
from clora_core.museum.file import load_museum, replacing, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.file.files import version
from tests.museums import museum, put_together, taken_apart, unsealed

SMALL = museum("starter")
VERSIONS = [SMALL.only(list(SMALL.words[:count])) for count in (1, 2, 3, 4)] + [SMALL.only(["<ink>"])]


def words_of(path: Path) -> list[tuple[str, ...]]:
    return [load_museum(backup).words for backup in backups_of(path)]


def test_the_last_three_versions_are_kept_as_backups(tmp_path: Path):
    path = tmp_path / "a.museum.safetensors"
    for each in VERSIONS:
        save_museum(each, path, overwrite=True)
    assert words_of(path) == [each.words for each in VERSIONS[1:4]]
    assert [backup.name.split(".")[:3] for backup in backups_of(path)] == [["a", "museum", n] for n in "234"]


def test_files_of_users_are_never_replaced_or_removed(tmp_path: Path):
    """Neither a museum called .bak, nor other files that look like backups."""
    path = tmp_path / "a.safetensors"
    own = [tmp_path / name for name in ("a.bak.safetensors", "a.1.0123abcd.backup", "a.safetensors.bak", "a.1.backup")]
    for each in own:
        each.write_bytes(b"precious")
    for each in VERSIONS:
        save_museum(each, path, overwrite=True)
    assert all(each.read_bytes() == b"precious" for each in own)
    assert words_without(path, own) == [each.words for each in VERSIONS[1:4]]


def words_without(path: Path, own: list[Path]) -> list[tuple[str, ...]]:
    return [load_museum(backup).words for backup in backups_of(path) if backup not in own]


def test_a_changed_backup_is_treated_as_a_users_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    for each in VERSIONS[:2]:
        save_museum(each, path, overwrite=True)
    (first,) = backups_of(path)
    os.replace(path, first)
    for each in VERSIONS:
        save_museum(each, path, overwrite=True)
    assert load_museum(first).words == VERSIONS[1].words


def test_temporary_files_of_killed_processes_are_removed_after_a_day(tmp_path: Path):
    old, new, other = (tmp_path / name for name in (".clora-0123.tmp", ".clora-4567.tmp", "notes.tmp"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1000, 1000))
    save_museum(SMALL, tmp_path / "a.safetensors")
    assert not old.exists() and new.exists() and other.exists()


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is locked as if another program were writing in it."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(replacing, "PATIENCE_S", 0.05)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield tmp_path
    os.close(descriptor)


def test_waiting_for_a_locked_folder_is_reported_and_can_be_stopped(locked: Path):
    messages: list[str] = []

    def stop(text: str) -> None:
        messages.append(text)
        if len(messages) == 3:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        save_museum(SMALL, locked / "a.safetensors", waiting=stop)
    assert messages == ["Another program is writing in this folder; waiting."] * 3
    assert time.monotonic() - began < 5 and not list(locked.iterdir())


def test_waiting_is_logged_once_and_ends_with_the_other_program(
    locked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    import fcntl

    attempts, lock = [0], fcntl.flock

    def freed(descriptor: int, how: int) -> None:
        attempts[0] += 1
        if attempts[0] < 8:
            lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", freed)
    with caplog.at_level(logging.WARNING):
        save_museum(SMALL, locked / "a.safetensors")
    assert caplog.text.count("Another program is writing in this folder") == 1
    assert load_museum(locked / "a.safetensors").words == SMALL.words


def test_a_version_depends_on_the_content_and_not_on_the_time(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_museum(SMALL, path)
    before, modified = version(path), path.stat().st_mtime_ns
    os.utime(path, (1000, 1000))
    assert version(path) == before
    changed = museum("starter")
    changed.exhibits[0].token.vectors["clip_l"][0, 0, 0] += 1
    save_museum(changed, path, overwrite=True)
    os.utime(path, ns=(modified, modified))
    assert version(path) != before


def test_the_version_of_a_file_without_a_hash_depends_on_its_time_too(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_museum(SMALL, path)
    header, data = taken_apart(path)
    header["__metadata__"] = unsealed(header["__metadata__"])
    put_together(path, header, data)
    before = version(path)
    os.utime(path, (1000, 1000))
    assert version(path) != before


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("con/x.safetensors", "reserves the name 'con' for a device"),
        ("com¹.safetensors", "for a device"),
        ("lpt1.txt.safetensors", "for a device"),
        ("aux .safetensors", "for a device"),
        ("x./y.safetensors", r"ends in '\.'"),
        ("x /y.safetensors", "ends in ' '"),
        ("a?.safetensors", r"contains \?"),
        ("a:b/c.safetensors", "contains :"),
        ("a\\b.safetensors", r"contains \\"),
        ("ä" * 120 + ".safetensors", "too long: it has 252 bytes"),
    ],
)
def test_names_that_some_system_forbids_are_refused_on_every_system(
    name: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    for attempt in (replacing.check_target, lambda path: save_museum(SMALL, path)):
        with pytest.raises(MuseumError, match=rf"{rule}.* Choose another"):
            attempt(Path(name))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_existing_folders_with_such_names_are_accepted(tmp_path: Path):
    """Of an absolute path, only the name of the file is checked."""
    (tmp_path / "my: museums").mkdir()
    save_museum(SMALL, tmp_path / "my: museums" / "a.safetensors")
