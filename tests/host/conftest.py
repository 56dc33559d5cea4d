"""Tests against a real ComfyUI. Without one they are skipped, and say why.

Those in test_http_*.py share a server that is started for them; all others have ComfyUI and the pack in this process.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.second_device import MISSING as MISSING_DEVICES

from .finding import find_host, import_host
from .server import Server

HOST = find_host()


def _missing() -> str:
    """Why ComfyUI cannot be had in this process, or nothing."""
    if HOST is None:
        return "no ComfyUI: set COMFYUI_PATH, or link this repository into its custom_nodes"
    try:
        import_host(HOST)
    except ImportError as error:
        return f"this Python cannot import the ComfyUI in {HOST} ({error}); run the tests with ComfyUI's own Python"
    return ""


MISSING = _missing()


class _Skipped(pytest.Module):
    """A file of tests that cannot even be imported here."""

    def collect(self) -> Iterator[pytest.Item]:
        raise pytest.skip.Exception(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if MISSING:
        return _Skipped.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _as_nodes_run() -> Iterator[None]:
    """ComfyUI runs nodes under inference mode; so do these tests, or half of what can go wrong would not."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def nodes() -> dict[str, Any]:
    """The pack's nodes by id, as ComfyUI is given them."""
    from clora_pack import comfy_entrypoint

    extension = asyncio.run(comfy_entrypoint())
    listed = asyncio.run(extension.get_node_list())
    return {node.GET_SCHEMA().node_id: node for node in listed}


@pytest.fixture
def own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Train Steps keep on disk is this test's own, in this folder."""
    import folder_paths
    from clora_pack.nodes.host.folders import results_folder

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path / "user"))
    return results_folder()


@pytest.fixture(scope="session")
def clones_stay_apart() -> None:
    """Skips where ComfyUI itself leaves one clone's patches on the weights that all clones share."""
    import comfy.model_management
    from clora_pack.nodes.host.model import PREFIX, places_of, unet_of

    from .models import small_models

    model = small_models("sd15")[0]
    path = next(iter(places_of(model).values())).module
    module = unet_of(model).get_submodule(path)
    states, patched = torch.ones(1, module.in_features, device=model.load_device), model.clone()
    patched.add_patches({f"{PREFIX}{path}.weight": ("diff", (torch.ones_like(module.weight),))})
    seen = []
    for clone in (model, patched, model):
        comfy.model_management.load_models_gpu([clone])
        seen.append(module(states).cpu())
    if not seen[0].equal(seen[2]) or seen[0].equal(seen[1]):
        pytest.skip("this ComfyUI mixes up what its clones of a model have on the weights")


@pytest.fixture
def devices_in_python() -> None:
    """Skips where torch knows none."""
    if MISSING_DEVICES:
        pytest.skip(MISSING_DEVICES)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI started from its own main.py, for all tests over HTTP."""
    assert HOST is not None
    server = Server(HOST, tmp_path_factory.mktemp("comfyui"))
    try:
        server.start()
        yield server
    finally:
        server.stop()
