"""File and folder names that work on every system, so that files can be copied anywhere."""

import re
from pathlib import PurePath

from ...errors import MuseumError
from ...texts import misleading, unprintable

SUFFIX = ".safetensors"
LONGEST = 235  # bytes of a name: most systems allow 255, and a backup's name is longer than the file's
RESERVED = re.compile(r'[<>:"/\\|?*]')
DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)


def why_unusable(name: str) -> str:
    """Why some system does not allow this name, as a sentence; "" if all allow it."""
    if not name.strip(". "):
        return f"{name!r} is not a valid name."
    if character := unprintable(name) or misleading(name):
        return f"The name {name!r} contains {character!r}, which is not printable."
    if match := RESERVED.search(name):
        return f"The name '{name}' contains {match[0]}, which Windows does not allow in names."
    if DEVICE.fullmatch(name):
        return f"Windows reserves the name '{name}' for a device."
    if name[-1] in ". ":
        return f"The name '{name}' ends in '{name[-1]}', which Windows removes."
    if (size := len(name.encode())) > LONGEST:
        return f"The name '{name[:40]}…' is too long: it has {size} bytes; the limit is {LONGEST}."
    return ""


def check_names(path: PurePath) -> None:
    """Raise MuseumError for a name in this path that some system does not allow.

    In an absolute path only the last name is checked, since its folders already exist on this system. Windows has
    relative paths with a root or a drive, such as \\museums and C:museums, which are no names.
    """
    for name in path.parts[-1:] if path.is_absolute() else path.parts[bool(path.anchor) :]:
        if name not in (".", "..") and (why := why_unusable(name)):
            raise MuseumError(f"{why} Choose another name.")
