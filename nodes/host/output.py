"""Where nodes write what people take away."""

from pathlib import Path

import folder_paths

from ...clora_core.errors import CLoRAError
from .folders import unusable


def new_output_path(name: str, suffix: str) -> Path:
    """A file of the output folder that is not there yet: the name, a number, the suffix. Folders in the name are made.

    Raises CLoRAError for a name that leads elsewhere.
    """
    root = Path(folder_paths.get_output_directory()).resolve()
    parts = name.replace("\\", "/").split("/")
    if unusable(parts) or not (root / name).resolve().is_relative_to(root):
        raise CLoRAError(f"'{name}' is no name for a file in '{root}'. Use letters and digits, and / for a folder.")
    folder, stem, number, _, _ = folder_paths.get_save_image_path(name, str(root))
    return Path(folder, f"{stem}_{number:05}_{suffix}")
