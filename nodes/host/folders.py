"""Where museums, results and reports are stored, in ComfyUI's own folders."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import folder_paths

from ...clora_core.errors import BaseModelError, CLoRAError, ConceptError, MuseumError
from ...clora_core.texts import normal

KIND = "museums"
VISION_KIND = "clip_vision"
STARTER = "starter"
SUFFIX = ".safetensors"
MUSEUM_BYTES = 64 * 2**20  # what a museum takes, roughly: two exhibits of SDXL


def register_museums() -> None:
    """Register the model folder `museums`: models/loras/museums, plus any folders from extra_model_paths.yaml.

    It is inside `loras`, so stock LoRA loaders list the same files.
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
    names = ", ".join(museum_names()) or "no museums yet"
    missing = f"There is no museum '{name}' in '{_folder()}'." if name else f"No museum is chosen from '{_folder()}'."
    raise MuseumError(f"{missing} It contains: {names}. Choose one of these, or save one with C-LoRA Save Museum.")


def museum_version(name: str | None) -> str:
    """A text that changes with the content of the museum's file, or of any museum for None; empty without a file."""
    from ...clora_core.museum.file.files import version  # the engine is not imported while ComfyUI starts

    versions = []
    for own in museum_names() if name is None else [name or "."]:
        with suppress(OSError):
            if path := folder_paths.get_full_path(KIND, own):
                versions.append(f"{path} {version(Path(path))}")
    return " ".join(versions)


def saved_version(name: str | None) -> str:
    """`museum_version` of the file that a museum of this name is saved to."""
    from ...clora_core.museum.file.files import version

    with suppress(OSError, MuseumError):
        return museum_version(None) if name is None else version(_new_museum_path(name))
    return ""


def picture_folders() -> list[str]:
    """The folders in ComfyUI's input folder, with / between the parts of a name, without hidden ones."""
    root = Path(folder_paths.get_input_directory())
    folders = [Path(folder, name).relative_to(root) for folder, names, _ in os.walk(root) for name in names]
    return sorted(path.as_posix() for path in folders if not any(part.startswith(".") for part in path.parts))


def picture_folder(name: str) -> Path:
    """A folder in ComfyUI's input folder. Raises ConceptError if there is none of that name."""
    root = Path(folder_paths.get_input_directory())
    if name in picture_folders():
        return root / name
    names = ", ".join(picture_folders()[:20]) or "no folders yet"
    raise ConceptError(
        f"There is no folder '{name}' in ComfyUI's input folder '{root}'. Create it and put the pictures into it, then "
        f"press R to refresh. It contains: {names}."
    )


def chosen_pictures(folder: str, files: str) -> list[Path]:
    """Single files, one path per line, in that folder or else in the input folder. Raises ConceptError for others."""
    root = Path(folder_paths.get_input_directory())
    paths = []
    for line in filter(None, map(str.strip, files.splitlines())):
        candidates = [path for path in (root / folder / line, root / line) if os.path.isfile(path)]  # never raises
        if not candidates or not candidates[0].resolve().is_relative_to(root.resolve()):
            raise ConceptError(
                f"There is no file '{line:.200}' in '{root / folder}'. Write one file per line, as it is named there."
            )
        paths.append(candidates[0])
    return paths


def pictures_version(name: str) -> str:
    """A text that changes with the files of a folder of pictures, or of the whole input folder for ""."""
    if name and name not in picture_folders():
        return ""
    from ...clora_core.picture_files import all_files  # the engine is not imported while ComfyUI starts

    root = picture_folder(name) if name else Path(folder_paths.get_input_directory())
    files = [path for path in all_files(root) if path.is_file()]
    return " ".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)


def vision_names() -> list[str]:
    """The vision transformers that can be opened: the starter, and folders with a config.json in models/clip_vision."""
    names = {path.parent.name for folder in _vision_folders() for path in folder.glob("*/config.json")}
    return [STARTER, *sorted(names - {STARTER})]


def vision_path(name: str) -> Path | str:
    """The folder of a vision transformer, or "starter". Raises BaseModelError if there is none of that name."""
    if name == STARTER:
        return name
    for folder in _vision_folders():
        if name in (path.parent.name for path in folder.glob("*/config.json")):
            return folder / name
    where, names = _vision_folders()[0], ", ".join(vision_names())
    raise BaseModelError(f"There is no vision transformer '{name}' in '{where}'. Choose one of: {names}.")


def check_new_museum(name: str) -> None:
    """Raise MuseumError if no museum can be saved under this name: an invalid name, or a full disk."""
    path = _new_museum_path(name)
    folder = next(folder for folder in path.parents if folder.exists())
    needed = MUSEUM_BYTES + (path.stat().st_size if path.is_file() else 0)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise MuseumError(
            f"Only {free / 2**20:.0f} MiB are free in '{folder}', and a museum may need {needed / 2**20:.0f} MiB. Make "
            "room first."
        )


def new_museum_path(name: str) -> Path:
    """The path to save a museum of that name to. Creates folders in the name.

    "cats" becomes cats.museum.safetensors. Raises MuseumError for a name that leads out of the folder.
    """
    path = _new_museum_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MuseumError(f"Cannot create the folder '{path.parent}': {error.strerror}. Choose another.") from error
    return path


def _new_museum_path(name: str) -> Path:
    parts = [part.strip() for part in normal(name).replace("\\", "/").split("/")]
    problem = _problem(parts)
    if not parts[-1].endswith(SUFFIX):
        parts[-1] += f".museum{SUFFIX}"
    if problem := problem or _problem(parts):
        raise MuseumError(f"{problem} Use letters and digits, and / for a folder: people/cats.")
    folder = _folder()
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise MuseumError(f"'{name}' leads out of the museums folder '{folder}'. Choose a plain name.")
    return path


def new_output_path(name: str, suffix: str) -> Path:
    """An unused path in the output folder: the name, a number, the suffix. Creates folders in the name.

    Raises CLoRAError for a name that leads out of the folder.
    """
    root, name = output_folder(), normal(name)
    if _problem(name.replace("\\", "/").split("/")) or not (root / name).resolve().is_relative_to(root):
        raise CLoRAError(f"'{name}' is not a valid file name in '{root}'. Use letters and digits, and / for a folder.")
    folder, stem, number, _, _ = folder_paths.get_save_image_path(name, str(root))
    return Path(folder, f"{stem}_{number:05}_{suffix}")


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def report_path(name: str) -> Path | None:
    """An HTML file in the output folder by its name there; None if there is none, or if it leads out of the folder."""
    root = output_folder()
    try:
        path = (root / name).resolve()
        return path if path.suffix == ".html" and path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError):
        return None


def short(path: Path) -> str:
    """A path for display, relative to ComfyUI's own folder."""
    root = Path(folder_paths.base_path).resolve()
    resolved = path.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else str(path)


def results_folder() -> Path:
    """Where Train Steps store their results. It survives a restart, and the web server does not serve it."""
    return Path(folder_paths.get_user_directory(), "__clora", "results")


def _problem(parts: Sequence[str]) -> str:
    """Why names of folders and a file are invalid on some operating system; "" if they are valid."""
    from ...clora_core.museum.file.names import why_unusable

    return next((why for part in parts if (why := why_unusable(part))), "")


def _vision_folders() -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(VISION_KIND)]


def _folder() -> Path:
    return Path(folder_paths.get_folder_paths(KIND)[0])
