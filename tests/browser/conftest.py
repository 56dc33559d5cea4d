"""Tests in Chromium, driven by Playwright; most of them in the real frontend of a ComfyUI of their own.

Without a browser all are skipped, without a ComfyUI all but those that need none.

Chromium is CHROMIUM, or the one on the PATH, or Playwright's own (`playwright install chromium`).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.finding import find_host
from tests.host.server import Server

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
HOST = find_host()


def _missing() -> str:
    """Why there is no browser, or nothing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "no Playwright: pip install -e .[browser]"
    if CHROMIUM is None:
        with sync_playwright() as playwright:
            if not Path(playwright.chromium.executable_path).is_file():
                return "no Chromium: install it, or run `playwright install chromium`"
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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI whose museums are one of three exhibits and one of a thousand."""
    if HOST is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or link this repository into its custom_nodes")
    server = Server(HOST, tmp_path_factory.mktemp("comfyui"))
    from .museums import save_museums

    save_museums(server.folder / "models" / "loras" / "museums")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    from .frontend import chromium

    with chromium(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "Vue"])
def frontend(server: Server, browser: object, request: pytest.FixtureRequest) -> Iterator[object]:
    """ComfyUI's page, freshly loaded for the tests of a file, with nodes drawn in both of its ways; none of the pack's
    scripts may fail in it."""
    from .frontend import VUE, Frontend

    with Frontend.opened(browser, server.address, **{VUE: request.param}) as frontend:
        if request.param and frontend.version() < (1, 58):
            pytest.skip("this frontend's Vue nodes have no panels yet")  # 1.27 has none; between, nobody looked
        yield frontend
        assert not frontend.errors, frontend.errors
