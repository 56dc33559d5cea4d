"""Say in words whether this Python and this ComfyUI can run the pack. Installs nothing.

ComfyUI-Manager runs it after a download; by hand: `python install.py` in the pack's folder, with ComfyUI's Python.
"""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

PYTHON = (3, 10)
PACKAGES = {"torch": (2, 4), "safetensors": (), "einops": (), "numpy": (), "pillow": ()}  # name → least version
COMFYUI = (0, 3, 64)


def main() -> int:
    """Print what is present and what is missing; 0 if the pack can run."""
    problems = [*python_problems(), *package_problems(), *comfyui_problems(comfyui_folder())]
    for problem in problems:
        print(f"C-LoRA: MISSING  {problem}")
    if problems:
        print("C-LoRA: the nodes will not work until that is there. Nothing was installed.")
        return 1
    print("C-LoRA: everything is here. Start ComfyUI; the nodes are under C-LoRA. Nothing was installed.")
    return 0


def python_problems() -> list[str]:
    """What is wrong with the Python that runs this."""
    if sys.version_info[:2] < PYTHON:
        return [f"Python {_dotted(PYTHON)} or newer; this is {sys.version.split()[0]}"]
    return _present(f"Python {sys.version.split()[0]}")


def package_problems() -> list[str]:
    """Packages that are not there or too old."""
    problems = []
    for name, least in PACKAGES.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name}, which ComfyUI itself needs; is this ComfyUI's own Python ({sys.executable})?")
            continue
        if _numbers(found) < least:
            problems.append(f"{name} {_dotted(least)} or newer; here is {found}. Update it as ComfyUI's own guide says")
        else:
            _present(f"{name} {found}")
    return problems


def comfyui_folder() -> Path | None:
    """ComfyUI's folder: COMFYUI_PATH, or the one whose custom_nodes this pack lies in."""
    pack = Path(__file__).absolute().parent
    candidates = [Path(named)] if (named := os.environ.get("COMFYUI_PATH")) else []
    candidates += pack.parents[1:2]
    return next((folder for folder in candidates if (folder / "comfyui_version.py").is_file()), None)


def comfyui_problems(folder: Path | None) -> list[str]:
    """What is wrong with the ComfyUI around the pack; one that is not found is no problem, just said."""
    if folder is None:
        print("C-LoRA: note     this folder lies in no ComfyUI's custom_nodes, so its version was not checked")
        return []
    match = re.search(r'__version__ = "([^"]+)"', (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    found = match[1] if match else "0"
    if _numbers(found) < COMFYUI:
        return [f"ComfyUI {_dotted(COMFYUI)} or newer; in {folder} is {found}"]
    return _present(f"ComfyUI {found}")


def _present(what: str) -> list[str]:
    print(f"C-LoRA: present  {what}")
    return []


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version starts with: "2.13.0+cpu" → (2, 13, 0)."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


if __name__ == "__main__":
    sys.exit(main())
