"""Where museums and results live, by ComfyUI's own folders."""

import os
from collections.abc import Sequence
from pathlib import Path

import folder_paths

from ...clora_core.errors import MuseumError

KIND = "museums"
SUFFIX = ".safetensors"


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
    """Another text for a file of other content; empty where there is none that can be read."""
    from ...clora_core.museum.file.files import version  # none of the engine is imported while ComfyUI starts

    path = folder_paths.get_full_path(KIND, name or ".")
    try:
        return f"{path} {version(Path(path))}" if path else ""
    except OSError:
        return ""


def new_museum_path(name: str) -> Path:
    """The file that a museum of that name is written to; folders in the name are made.

    "cats" becomes cats.museum.safetensors. Raises MuseumError for a name that leads elsewhere.
    """
    parts = [part.strip() for part in name.replace("\\", "/").split("/")]
    why = unusable(parts)
    if not parts[-1].endswith(SUFFIX):
        parts[-1] += f".museum{SUFFIX}"
    if why := why or unusable(parts):
        raise MuseumError(f"{why} Use letters, digits and such, and / for a folder: people/cats.")
    folder = _folder()
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise MuseumError(f"'{name}' leads out of the folder of museums, '{folder}'. Choose a plain name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MuseumError(f"The folder '{path.parent}' cannot be made: {error.strerror}. Choose another.") from error
    return path


def unusable(parts: Sequence[str]) -> str:
    """Why names of folders and a file cannot be used on one system or another; "" if they can."""
    from ...clora_core.museum.file.names import why_unusable

    return next((why for part in parts if (why := why_unusable(part))), "")


def results_folder() -> Path:
    """Where Train Steps keep their results. It survives a restart, and the web server hands out nothing of it."""
    return Path(folder_paths.get_user_directory(), "__clora", "results")


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths(KIND)[0])
