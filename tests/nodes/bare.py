"""The pack's files that need no ComfyUI, imported as a package without its entry point and its list of nodes."""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
PACK = "clora_bare"


def import_bare() -> None:
    """Afterwards `clora_bare.clora_core…` and `clora_bare.nodes.actions.results` and such can be imported."""
    if PACK in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    sys.modules[PACK] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = types.ModuleType(f"{PACK}.nodes")
    nodes.__path__ = [str(ROOT / "nodes")]
    sys.modules[nodes.__name__] = nodes
