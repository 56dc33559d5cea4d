"""A file takes its name only when it is whole: at every moment the name stands for the old file or for the new one."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from torch import Tensor

from ...errors import MuseumError
from .backups import keep, remove_old
from .files import Identity, dump, errors_about, identity
from .names import SUFFIX, check_names

Existing = Literal["refuse", "keep beside", "replace"]
Waiting = Callable[[str], None]  # called again and again while a file waits; may raise to stop

TEMPORARY = ".clora-*.tmp"
ABANDONED_S = 24 * 60 * 60  # without a change for so long, a temporary file is that of a killed process
PATIENCE_S = 3.0  # of waiting for another process, before it is said
WAITS = "Another program is writing in this folder; waiting."

log = logging.getLogger(__name__)


class ChangedMeanwhileError(MuseumError):
    """Another program has written the file since it was read; its work would be lost."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, existing: Existing) -> None:
    """Write the file so that its name stands, at every moment, for a whole file: the old one or the new one."""
    with replacing(path, existing) as file:
        dump(file, tensors, lambda _: metadata)


@contextmanager
def replacing(
    path: Path, existing: Existing, *, read: Identity | None = None, waiting: Waiting | None = None
) -> Iterator[BinaryIO]:
    """A new file that takes the name when the block is left without an error, and is gone otherwise.

    existing: what happens to a file of that name; "keep beside" makes it the newest of its backups. read: which file of
    that name the new one was made of; ChangedMeanwhileError if there is another now. waiting: is called with a sentence
    again and again while another process holds the folder for long, and may raise to stop; by default it is logged.
    """
    _check_target(path)
    if existing == "refuse" and path.exists():
        raise _taken()
    path = path.resolve()  # a link stays a link
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _alone_in(path.parent, waiting):
            if read and identity(path) != read:
                raise ChangedMeanwhileError("Another program has changed it since it was read. Do it again.")
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
    """Raise MuseumError where `write` would for the name or the folder; worth asking before a long work."""
    path = Path(path)
    with errors_about(path):
        _check_target(path)
        if not os.access(path.parent, os.W_OK):
            raise MuseumError(f"You may not write into '{path.parent}'. Choose another folder.")


def set_aside(path: Path) -> Path:
    """Give a damaged file a name under which nothing reads it, in the place of an older one, and say which."""
    aside = path.with_name(f"{path.name}.damaged")
    with suppress(FileNotFoundError):  # another process has done it
        os.replace(path, aside)
    return aside


def _check_target(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise MuseumError(f"The name must end in '{SUFFIX}'.")
    check_names(path)
    if not path.parent.is_dir():
        raise MuseumError(f"There is no folder '{path.parent}'. Create it first, or choose another.")
    if path.is_dir():
        raise MuseumError("A folder has this name. Choose another.")


def _temporary(path: Path) -> Path:
    """A short name, since file systems limit its length; hidden, and not found by lists of models."""
    return path.with_name(f".clora-{secrets.token_hex(8)}.tmp")


def _remove_abandoned(newest: Path) -> None:
    """Remove what killed processes were writing beside this file. What a living one writes changes all the time."""
    now = newest.stat().st_mtime  # by the clock of the file system
    for temporary in newest.parent.glob(TEMPORARY):
        with suppress(OSError):
            if now - temporary.lstat().st_mtime > ABANDONED_S:
                temporary.unlink()


@contextmanager
def _alone_in(folder: Path, waiting: Waiting | None) -> Iterator[None]:
    """While entered, no other process puts a file into its place there, as far as they ask for it in this way.

    Windows has no such lock, and some file systems neither: there the last of two that end at once wins.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        began, say = time.monotonic(), waiting or _logged_once()
        with suppress(OSError):  # a file system without locks
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    impatient = time.monotonic() - began > PATIENCE_S
                if impatient:
                    say(WAITS)
                time.sleep(0.2 if impatient else 0.02)
        yield
    finally:
        os.close(descriptor)


def _logged_once() -> Waiting:
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            log.warning("C-LoRA: %s", text)
        said.add(text)

    return say


def _link_new(temporary: Path, path: Path) -> None:
    """Take a name that must be free, even of a file that came while this one was written."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken() from error
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise _taken() from error
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut. Windows knows no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse; the file itself is safe
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _taken() -> MuseumError:
    return MuseumError("A file of this name exists already. Choose another name, or ask to overwrite it.")
