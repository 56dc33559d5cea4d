"""Check whether this Python and this ComfyUI can run the pack. Installs nothing.

ComfyUI-Manager runs it after a download. By hand: `python install.py` in the pack's folder, with ComfyUI's Python.
"""

from __future__ import annotations  # so that an older Python gets as far as its message

import importlib.metadata
import os
import re
import sys
from pathlib import Path

PACKAGES = ("torch", "safetensors", "einops", "numpy", "pillow")
MINIMUM = {"Python": (3, 10), "torch": (2, 4), "ComfyUI": (0, 3, 64)}


def main() -> int:
    """Print the versions and what is missing; 0 if the pack can run."""
    versions: dict[str, str | None] = {"Python": sys.version.split()[0], **{name: _package(name) for name in PACKAGES}}
    if folder := comfyui_folder():
        versions["ComfyUI"] = _comfyui(folder)
    else:
        print("C-LoRA: note     the pack is not in ComfyUI's custom_nodes, so ComfyUI's version was not checked")
    if all([_fits(name, version) for name, version in versions.items()]):
        print("C-LoRA: ready. Start ComfyUI; the nodes are in the category C-LoRA. Nothing was installed.")
        return 0
    print("C-LoRA: the nodes will not work until this is fixed. Nothing was installed.")
    return 1


def comfyui_folder() -> Path | None:
    """ComfyUI's folder: COMFYUI_PATH, or the one whose custom_nodes contains this pack."""
    candidates = [Path(path)] if (path := os.environ.get("COMFYUI_PATH")) else []
    candidates.append(Path(__file__).absolute().parent.parent.parent)
    return next((folder for folder in candidates if (folder / "comfyui_version.py").is_file()), None)


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _comfyui(folder: Path) -> str:
    match = re.search(r'__version__ = "([^"]+)"', (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    return match[1] if match else "0"


def _fits(name: str, version: str | None) -> bool:
    """Print whether this version is new enough. None: not installed."""
    minimum = MINIMUM.get(name, ())
    if version is None:
        print(f"C-LoRA: MISSING  {name}, which ComfyUI needs too. Is this ComfyUI's Python ({sys.executable})?")
        return False
    leading = re.match(r"\d+(?:\.\d+)*", version)  # "2.13.0+cpu" → 2.13.0
    if (tuple(map(int, leading[0].split("."))) if leading else ()) < minimum:
        print(f"C-LoRA: MISSING  {name} {'.'.join(map(str, minimum))} or newer (this is {version}). Update it.")
        return False
    print(f"C-LoRA: present  {name} {version}")
    return True


if __name__ == "__main__":
    sys.exit(main())
