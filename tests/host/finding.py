"""Where a real ComfyUI is, and how to have it in this process together with the pack.

The host is COMFYUI_PATH, or the one whose custom_nodes this repository lies in, or ~/comfy/ComfyUI. Its Python is
COMFYUI_PYTHON, or the virtual environment in or beside it, or the one that runs the tests.
"""

import importlib
import importlib.util
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
PACK = "clora_pack"


def find_host() -> Path | None:
    """The folder of ComfyUI's main.py."""
    places = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
    places.append(Path.home() / "comfy" / "ComfyUI")
    if chosen := os.environ.get("COMFYUI_PATH"):
        places = [Path(chosen)]
    return next((place for place in places if (place / "main.py").is_file() and (place / "comfy").is_dir()), None)


def required_host() -> Path:
    """The same for scripts, which end with a message if there is none."""
    if (host := find_host()) is None:
        sys.exit("No ComfyUI was found. Set COMFYUI_PATH to the folder of its main.py.")
    return host


def is_package(host: Path) -> bool:
    """Whether it is the ComfyUI that pip can install (hiddenswitch), whose modules all lie in packages."""
    return (host / "comfy" / "cmd" / "main.py").is_file()


def host_python(host: Path) -> str:
    """The Python that ComfyUI is installed in."""
    if chosen := os.environ.get("COMFYUI_PYTHON"):
        return chosen
    tails = ("bin/python", "Scripts/python.exe")
    places = [host / name / tail for name in (".venv", "venv", "../venv", "../.venv") for tail in tails]
    return next((str(place) for place in places if place.is_file()), sys.executable)


def import_host(host: Path) -> None:
    """Import ComfyUI and the pack (as `clora_pack`) into this process. Raises ImportError where this Python cannot."""
    import torch

    keep_torchvision_importable()
    sys.path.insert(0, str(host))
    arguments = sys.argv
    try:
        sys.argv = [arguments[0], *([] if torch.cuda.is_available() else ["--cpu"])]
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        if is_package(host):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it would wrap and close pytest's
                importlib.import_module("comfy_compatibility.vanilla").prepare_vanilla_environment()
        else:
            importlib.import_module("utils.install_util")  # before ComfyUI's `nodes` puts another `utils` before it
        importlib.import_module("comfy.sd")
    finally:
        sys.argv = arguments
    import_pack()


def import_pack() -> None:
    """Import the repository as one package under another name, as ComfyUI imports what lies in custom_nodes."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)


def keep_torchvision_importable() -> None:
    """torchvision's wheels are built for CUDA; with a CPU torch two operators are missing that its import looks up."""
    import torch

    if torch.cuda.is_available() or "torchvision" in sys.modules or not importlib.util.find_spec("torchvision"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    vars(torch.library).setdefault("_clora_tests_keep", library)  # gone, it would take the operators with it
