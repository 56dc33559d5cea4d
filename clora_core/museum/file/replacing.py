"""Replace files atomically: at every moment the name belongs to the complete old file or the complete new one."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from torch import Tensor

from ...errors import CLoRAError, MuseumError
from .backups import keep, remove_old
from .files import Identity, dump, errors_about, identity, refused_by_the_system
from .names import SUFFIX, check_names

Content = TypeVar("Content")
Existing = Literal["refuse", "keep beside", "replace"]
Waiting = Callable[[str], None]  # called with a message while a write waits; may raise to stop

ABANDONED_S = 24 * 60 * 60  # a temporary file unchanged for this long belongs to a killed process
PATIENCE_S = 3.0  # of silent waiting for another process
WAITS = "Another program is writing in this folder; waiting."
TAKEN = "A file of this name already exists. Choose another name, or allow overwriting."

log = logging.getLogger(__name__)


class ChangedMeanwhileError(MuseumError):
    """Another program has written the file since it was read; replacing it would lose that program's changes."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool) -> None:
    """Write a safetensors file atomically. overwrite: replace an existing file, and keep it as a backup."""
    with replacing(path, "keep beside" if overwrite else "refuse") as file:
        dump(file, tensors, lambda _: metadata)


@contextmanager
def replacing(
    path: Path, existing: Existing, *, read: Identity | None = None, waiting: Waiting | None = None
) -> Iterator[BinaryIO]:
    """A temporary file to write in the block. It takes the name at the end, or is deleted if the block raises.

    existing: what happens to a file of that name; "keep beside" makes it the newest backup. read: the identity of the
    file that the new one was derived from; raises ChangedMeanwhileError if the path is another file by now. waiting:
    called repeatedly with a message while another process locks the folder; may raise to stop. Default: log it once.
    """
    _check_target(path)
    if existing == "refuse" and path.exists():
        raise MuseumError(TAKEN)
    path = path.resolve()  # keep symbolic links
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _locked(path.parent, waiting):
            if read and identity(path) != read:
                raise ChangedMeanwhileError("Another program has changed it since it was read. Try again.")
            if existing == "refuse":
                _link_new(temporary, path)
            else:
                if existing == "keep beside" and path.exists():
                    keep(path, _temporary(path))
                os.replace(temporary, path)
                remove_old(path)
            _remove_abandoned(path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_target(path: Path | str) -> None:
    """Raise MuseumError if a file of this name cannot be written. Call it before long work."""
    path = Path(path)
    with errors_about(path):
        _check_target(path)
        if not os.access(path.parent, os.W_OK):
            raise MuseumError(f"You have no permission to write to '{path.parent}'. Choose another folder.")


def read_if_intact(path: Path, read: Callable[[Path], Content], say: Callable[[str], None]) -> Content | None:
    """What `read` makes of a file of a training. None, with a message, if it is damaged or another user's.

    A damaged file is set aside. Raises MuseumError if the system refused to read it, since it may be intact.
    """
    try:
        return read(path)
    except MuseumError as error:
        if isinstance(error.__cause__, PermissionError):
            say(f"{error} The training starts over.")
            return None
        if refused_by_the_system(error):
            raise
        set_aside(path, error, say)
        return None


def set_aside(path: Path, error: CLoRAError, say: Callable[[str], None]) -> None:
    """Rename a damaged file of a training to ….damaged, so that it is not read again, and say so."""
    aside = path.with_name(f"{path.name}.damaged")
    with suppress(FileNotFoundError):  # another process has renamed it
        os.replace(path, aside)
    say(f"{error} It is set aside as '{aside.name}', and the training starts over.")


def _check_target(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise MuseumError(f"The name must end in '{SUFFIX}'.")
    check_names(path)
    if not path.parent.is_dir():
        raise MuseumError(f"There is no folder '{path.parent}'. Create it first, or choose another.")
    if path.is_dir():
        raise MuseumError("A folder has this name. Choose another.")


def _temporary(path: Path) -> Path:
    """A short name, since file systems limit the length; hidden, and with a suffix that lists of models ignore."""
    return path.with_name(f".clora-{secrets.token_hex(8)}.tmp")


def _remove_abandoned(newest: Path) -> None:
    """Delete temporary files of killed processes in this folder. A live process keeps changing its own."""
    now = newest.stat().st_mtime  # by the clock of the file system
    for temporary in newest.parent.glob(".clora-*.tmp"):
        with suppress(OSError):
            if now - temporary.lstat().st_mtime > ABANDONED_S:
                temporary.unlink()


@contextmanager
def _locked(folder: Path, waiting: Waiting | None) -> Iterator[None]:
    """Hold this package's lock on the folder.

    Windows and some file systems have no such lock. There, the last of two simultaneous writers wins.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        began, warned = time.monotonic(), False
        with suppress(OSError):  # a file system without locks
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    impatient = time.monotonic() - began > PATIENCE_S
                if impatient and waiting:
                    waiting(WAITS)
                elif impatient and not warned:
                    log.warning("C-LoRA: %s", WAITS)
                    warned = True
                time.sleep(0.2 if impatient else 0.02)
        yield
    finally:
        os.close(descriptor)


def _link_new(temporary: Path, path: Path) -> None:
    """Take the name only if it is still free."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if isinstance(error, FileExistsError) or path.exists():
            raise MuseumError(TAKEN) from error
        os.replace(temporary, path)  # a file system without hard links


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut. Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse; the file itself is safe
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
