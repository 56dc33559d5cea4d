"""Saving by processes that are killed, that save at the same time, that run out of disk space, or lack permission."""

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from clora_core.errors import MuseumError
from clora_core.museum.file import append_exhibits, backups, check_target, files, load_museum, replacing, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Museum
from tests.museums import assert_same, exhibit, museum, projections

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks processes")

ONE = museum("starter")
OTHER = Museum(
    ONE.base,
    tuple(exhibit(f"<w{i}>", projections("starter"), seed=i, ranks=(16,), architecture="starter") for i in range(6)),
)


def forked(work: Callable[..., object], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start the work in its own process."""
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(work, *arguments))
    process.start()
    return process


def _alone(work: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork; waiting for them would never end
    work(*arguments)


def kept(path: Path) -> Museum:
    """The content of the file, which must be one of the two complete museums."""
    loaded = load_museum(path)
    assert_same(ONE if loaded.words == ONE.words else OTHER, loaded)
    return loaded


def save_forever(path: Path, began: int) -> None:
    for turn, each in enumerate(itertools.cycle((OTHER, ONE))):
        save_museum(each, path, overwrite=True)
        if turn == 0:
            os.write(began, b".")


def test_a_process_killed_at_a_random_moment_leaves_an_intact_file(tmp_path):
    path = tmp_path / "a.safetensors"
    intact = {}
    for each in (OTHER, ONE):
        began = time.perf_counter()
        save_museum(each, path, overwrite=True)
        intact[path.read_bytes()] = time.perf_counter() - began
    rng = random.Random(0)
    seen, interrupted = set(), 0
    for _ in range(200):
        ready, began = os.pipe()
        victim = forked(save_forever, path, began)
        os.read(ready, 1)
        time.sleep(rng.uniform(0, sum(intact.values())))
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        os.close(ready)
        os.close(began)
        backup_files = backups_of(path)
        assert all(each.read_bytes() in intact for each in (path, *backup_files)) and 1 <= len(backup_files) <= 4
        seen.add(path.read_bytes())
        for leftover in set(tmp_path.iterdir()) - {path, *backup_files}:
            assert leftover.match(".clora-*.tmp")
            leftover.unlink()
            interrupted += 1
    assert seen == set(intact)
    assert interrupted > 20  # killed in the middle of a file


def killed_at(path: Path, line: int, save: Callable[[Path], object]) -> None:
    """Save, and be killed at this line, counted over the modules that write files."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, argument: object) -> Callable | None:
        if frame.f_code.co_filename not in (files.__file__, replacing.__file__, backups.__file__):
            return None
        if event == "line" and frame.f_code.co_name not in ("_header", "_order", "_bytes", "check_finite", "<lambda>"):
            if next(lines) == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    save(path)


def overwrite(path: Path) -> None:
    save_museum(OTHER, path, overwrite=True)


def append(path: Path) -> None:
    append_exhibits([OTHER.exhibits[-1]], path, base=OTHER.base)


@pytest.mark.parametrize("save", [overwrite, append])
def test_a_process_killed_at_any_line_leaves_an_intact_file(save, tmp_path):
    """At each of the first 30 lines and at every ninth after them, until the process ends by itself."""
    path = tmp_path / "a.safetensors"
    old = ONE if save is overwrite else Museum(OTHER.base, OTHER.exhibits[:-1])
    save_museum(old, path)
    before = path.read_bytes()
    save_museum(OTHER, tmp_path / "new.safetensors")
    after = load_museum(tmp_path / "new.safetensors")
    seen, line = set(), 0
    while True:
        process = forked(killed_at, path, line, save)
        process.join()
        if path.read_bytes() != before:
            assert_same(after, load_museum(path))
        seen.add(path.read_bytes() == before)
        for backup in backups_of(path):
            assert backup.read_bytes() == before
            backup.unlink()
        for leftover in tmp_path.glob(".clora-*.tmp"):
            leftover.unlink()
        path.write_bytes(before)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        line += 1 if line < 30 else 9
    assert line > 60 and seen == {True, False}


def save_often(path: Path, museum: Museum) -> None:
    for _ in range(40):
        save_museum(museum, path, overwrite=True)


def test_two_processes_saving_at_once_never_mix_their_files(tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(ONE, path)
    writers = [forked(save_often, path, each) for each in (ONE, OTHER)]
    while any(writer.is_alive() for writer in writers):
        kept(path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    for backup in backups_of(path):
        kept(backup)
    assert len(list(tmp_path.iterdir())) == 1 + 3


def save_once(path: Path, museum: Museum) -> None:
    with contextlib.suppress(MuseumError):
        save_museum(museum, path)
        os._exit(7)


def test_only_one_of_two_processes_can_create_a_file(tmp_path):
    for turn in range(10):
        path = tmp_path / f"{turn}.safetensors"
        writers = [forked(save_once, path, each) for each in (ONE, OTHER)]
        for writer in writers:
            writer.join()
        assert sorted(writer.exitcode or 0 for writer in writers) == [0, 7]
        kept(path)
    assert len(list(tmp_path.iterdir())) == 10


def save_on_a_small_disk(path: Path, limit: int, save: Callable[[Path], object]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(MuseumError, match=r"a\.safetensors: File too large .*Check the disk"):
        save(path)


@pytest.mark.parametrize("save", [overwrite, append])
@pytest.mark.parametrize("limit", [0, 1000, 50_000])
def test_a_file_size_limit_keeps_the_old_file_and_leaves_nothing_else(save, limit, tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(ONE, path)
    process = forked(save_on_a_small_disk, path, limit, save)
    process.join()
    assert process.exitcode == 0
    assert_same(ONE, load_museum(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not mount or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(small_disk):
    path = small_disk / "a.safetensors"
    tiny = ONE.only(["lonely"])
    save_museum(tiny, path)
    wide = exhibit("<wide>", projections("starter", rows=2000), seed=1, ranks=(16,), architecture="starter")
    for save in (overwrite, lambda path: append_exhibits([wide], path, base=ONE.base)):
        with pytest.raises(MuseumError, match=r"a\.safetensors: No space left on device .*Check the disk"):
            save(path)
        assert_same(tiny, load_museum(path))
        assert list(small_disk.iterdir()) == [path]


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that only its owner may write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def save_without_rights(folder: Path) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # nobody
    for attempt in (
        lambda: save_museum(OTHER, folder / "b.safetensors"),
        lambda: overwrite(folder / "a.safetensors"),
        lambda: append(folder / "a.safetensors"),
    ):
        with pytest.raises(MuseumError, match=r"[ab]\.safetensors: Permission denied .*your permissions"):
            attempt()
    with pytest.raises(MuseumError, match="You have no permission to write to"):
        check_target(folder / "b.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="permissions work differently")
def test_a_folder_without_write_permission_is_reported(read_only_folder):
    path = read_only_folder / "a.safetensors"
    save_museum(ONE, path)
    path.chmod(0o644)
    read_only_folder.chmod(0o555)
    process = forked(save_without_rights, read_only_folder)
    process.join()
    assert process.exitcode == 0
    assert list(read_only_folder.iterdir()) == [path]
    assert_same(ONE, load_museum(path))
