"""Backups of replaced files, in the same folder.

    my.museum.safetensors   my.museum.1.5f0c93ab.backup   my.museum.2.e01b77d4.backup

The highest number is the newest backup. The digits after it are a digest of the file's header: only files that match
their digest are removed, and no backup is ever overwritten. To use a backup, rename it to ….safetensors.
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
    """The backups of this file, oldest first."""
    return [backup for _, backup in _numbered(path)]


def keep(path: Path, temporary: Path) -> None:
    """Link the file as its newest backup, without ever removing the file itself.

    temporary: a free name in the same folder, for a file system without hard links.
    """
    backups = _numbered(path)
    if backups and backups[-1][1].samefile(path):  # from a process that was killed before it replaced the file
        return
    number = backups[-1][0] + 1 if backups else 1
    backup = path.with_name(f"{path.stem}.{number}.{header_digest(path)[:DIGITS]}.backup")
    try:
        os.link(path, backup)
    except FileExistsError:
        pass  # another process has just made the same backup
    except OSError:  # a file system without hard links
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, backup)
        finally:
            temporary.unlink(missing_ok=True)


def remove_old(path: Path) -> None:
    """Delete all but the newest backups of this file."""
    for backup in backups_of(path)[:-MOST]:
        with suppress(OSError):
            if backup.name.split(".")[-2] == header_digest(backup)[:DIGITS]:
                backup.unlink()


def _numbered(path: Path) -> list[tuple[int, Path]]:
    pattern = re.compile(rf"{re.escape(path.stem)}\.([1-9][0-9]*)\.[0-9a-f]{{{DIGITS}}}\.backup")
    matches = ((pattern.fullmatch(file.name), file) for file in path.parent.iterdir())
    return sorted((int(match[1]), file) for match, file in matches if match)
