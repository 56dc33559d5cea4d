"""What a file held before it was replaced, kept beside it under names that are nobody else's.

    my.museum.safetensors   my.museum.1.5f0c93ab.backup   my.museum.2.e01b77d4.backup

The higher number is the newer one. The digits after it are those of the file's own header: a file is ours to remove
only while it holds what its name says, and nothing is ever replaced. A backup can be read like any museum; lists of
models show it once it is renamed to ….safetensors.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from .files import header_digest

MOST = 3
DIGITS = 8


def backups_of(path: Path) -> list[Path]:
    """The backups of this file, the oldest first."""
    return [backup for _, backup in _numbered(path)]


def keep(path: Path, temporary: Path) -> None:
    """Give the file a second name, as its newest backup; its first one never stands empty.

    temporary: a free name in the same folder, for a file system without hard links.
    """
    kept = _numbered(path)
    if kept and kept[-1][1].samefile(path):  # of a process that was killed before it could replace the file
        return
    number = kept[-1][0] + 1 if kept else 1
    backup = path.with_name(f"{path.stem}.{number}.{header_digest(path)[:DIGITS]}.backup")
    try:
        os.link(path, backup)
    except FileExistsError:
        pass  # another process has kept this very file
    except OSError:  # a file system without hard links
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, backup)
        finally:
            temporary.unlink(missing_ok=True)


def remove_old(path: Path) -> None:
    """Leave only the newest backups of this file."""
    for backup in backups_of(path)[:-MOST]:
        with suppress(OSError):
            if backup.name.split(".")[-2] == header_digest(backup)[:DIGITS]:
                backup.unlink()


def _numbered(path: Path) -> list[tuple[int, Path]]:
    pattern = re.compile(rf"{re.escape(path.stem)}\.([1-9][0-9]*)\.[0-9a-f]{{{DIGITS}}}\.backup")
    names = ((pattern.fullmatch(each.name), each) for each in path.parent.iterdir())
    return sorted((int(found[1]), each) for found, each in names if found)
