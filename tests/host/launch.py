"""Start the ComfyUI in a folder as `python launch.py COMFYUI_FOLDER arguments…`, also where torch knows no CUDA."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from finding import is_package, keep_torchvision_importable

if __name__ == "__main__":
    host = Path(sys.argv[1])
    keep_torchvision_importable()
    sys.path[0] = str(host)
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    if is_package(host):
        runpy.run_module("comfy.cmd.main", run_name="__main__")
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
