"""Names of files and folders that every system can hold, so that what is written can be copied anywhere."""

import re
from pathlib import Path

from ...errors import MuseumError
from ...texts import unprintable

SUFFIX = ".safetensors"
LONGEST = 235  # bytes of a name: systems hold 255, and a backup's name is longer than the file's
RESERVED = re.compile(r'[<>:"/\\|?*]')
DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)


def why_unusable(name: str) -> str:
    """What keeps a file or a folder of this name from one system or another, as a sentence; "" if nothing does."""
    if not name.strip(". "):
        return f"{name!r} cannot be a name."
    if odd := unprintable(name):
        return f"The name {name!r} holds {odd!r}, which is no printable character."
    if found := RESERVED.search(name):
        return f"The name '{name}' holds {found[0]}, which Windows does not allow in names."
    if DEVICE.fullmatch(name):
        return f"Windows keeps this name, '{name}', for a device, so the file could not be copied there."
    if name[-1] in ". ":
        return f"The name '{name}' ends in '{name[-1]}', which Windows leaves out."
    if (size := len(name.encode())) > LONGEST:
        return f"The name '{name[:40]}…' is too long: it takes {size} bytes; at most {LONGEST} are possible."
    return ""


def check_names(path: Path) -> None:
    """Raise MuseumError for a name in this path that one system or another cannot hold.

    Of an absolute path only the last name is checked, since its folders are those of the system it stands on.
    """
    for name in path.parts[-1:] if path.is_absolute() else path.parts:
        if name not in (".", "..") and (why := why_unusable(name)):
            raise MuseumError(f"{why} Choose another.")
