"""Where museums and results live, by ComfyUI's own folders."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...clora_core.errors import MuseumError
from ...clora_core.texts import unprintable

KIND = "museums"
SUFFIX = ".safetensors"
LONGEST = 200  # bytes of a name, with room for what is added to it
UNUSABLE = re.compile(r'[<>:"|?*]')  # in names of files, on one system or another


def register_museums() -> None:
    """Make `museums` a kind of model: models/loras/museums, and what extra_model_paths.yaml adds to it.

    It lies inside `loras`, so that stock LoRA loaders list the same files.
    """
    own = os.path.join(folder_paths.models_dir, "loras", KIND)
    kinds = folder_paths.folder_names_and_paths
    folders = kinds[KIND][0] if KIND in kinds else []
    kinds[KIND] = ([*folders, *([] if own in folders else [own])], {SUFFIX})


def museum_names() -> list[str]:
    """The museums that can be loaded."""
    return folder_paths.get_filename_list(KIND)


def museum_path(name: str) -> Path:
    """The file of a museum. Raises MuseumError if there is none of that name."""
    if path := folder_paths.get_full_path(KIND, name or "."):
        return Path(path)
    known = ", ".join(museum_names()) or "nothing yet"
    raise MuseumError(f"There is no museum '{name}' in '{_folder()}'. It holds: {known}.")


def museum_version(name: str) -> str:
    """Another text whenever the file was written anew; empty where there is none."""
    path = folder_paths.get_full_path(KIND, name or ".")
    return f"{path} {os.stat(path).st_mtime_ns}" if path else ""


def new_museum_path(name: str) -> Path:
    """The file that a museum of that name is written to; folders in the name are made.

    "cats" becomes cats.museum.safetensors. Raises MuseumError for a name that leads elsewhere.
    """
    parts = [part.strip() for part in name.replace("\\", "/").split("/")]
    if unusable(parts):
        raise MuseumError(
            f"'{name}' cannot be a museum's name. Use letters, digits and such, and / for a folder: people/cats."
        )
    if not parts[-1].endswith(SUFFIX):
        parts[-1] += f".museum{SUFFIX}"
    folder = _folder()
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise MuseumError(f"'{name}' leads out of the folder of museums, '{folder}'. Choose a plain name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MuseumError(f"The folder '{path.parent}' cannot be made: {error.strerror}. Choose another.") from error
    return path


def unusable(parts: Sequence[str]) -> bool:
    """Whether names of folders and a file cannot be used on one system or another."""
    return any(
        not part.strip()
        or part in (".", "..")
        or UNUSABLE.search(part)
        or unprintable(part)
        or len(part.encode()) > LONGEST
        for part in parts
    )


def results_folder() -> Path:
    """Where Train Steps keep their results. It survives a restart, and the web server hands out nothing of it."""
    return Path(folder_paths.get_user_directory(), "__clora", "results")


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths(KIND)[0])
