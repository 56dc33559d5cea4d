"""Pictures of the panels for the documentation, out of a real run: python -m tests.browser.screenshots

The starter workflow learns three concepts and saves them; then its panels are photographed, sharper than on a screen.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.host.finding import ROOT, find_host
from tests.host.server import Server

from .conftest import CHROMIUM
from .frontend import Frontend, chromium

DOCS = ROOT / "docs"
RUN_MS = 1_800_000  # that a slow machine may take


def main() -> None:
    parser = argparse.ArgumentParser(description="Photograph the panels, out of a real run.")
    parser.add_argument("--steps", type=int, default=100, help="that each concept is taught (default: %(default)s)")
    steps = parser.parse_args().steps
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI: set COMFYUI_PATH.")
    with TemporaryDirectory() as folder:
        server = Server(host, Path(folder))
        server.start()
        try:
            with chromium(CHROMIUM) as browser, Frontend.opened(browser, server.address, scale=1.5) as frontend:
                training(frontend, steps)
                museum(frontend)
        finally:
            server.stop()


def training(frontend: Frontend, steps: int) -> None:
    """The last Train Step when it is done."""
    frontend.load("1-three-concepts", CLoRA_TrainStep={"steps": steps, "preview_every": steps // 5})
    last = frontend.nodes("CLoRA_TrainStep")[-1]
    frontend.page.set_viewport_size({"width": 1280, "height": 1200})
    frontend.look_at(last, x=480, y=100)
    frontend.run()
    frontend.page.wait_for_selector(".clora-training:has(b:text-is('<cleo>')) dt", timeout=RUN_MS)
    frontend.wait_until_idle(RUN_MS / 1000)
    frontend.page.wait_for_timeout(1000)
    frontend.picture(DOCS / "panel-training.png", last)


def museum(frontend: Frontend) -> None:
    """Load Museum with one exhibit off, one weaker, and one pointed at."""
    frontend.load("2-load-a-museum")
    (node,) = frontend.nodes("CLoRA_LoadMuseum")
    frontend.set(node, "exhibits", "<ada>\n<cleo>: 0.7")
    frontend.look_at(node, x=80, y=160)
    frontend.page.wait_for_selector(".clora-row >> nth=2")
    frontend.page.evaluate(
        "(id) => app.graph.nodes.filter((node) => node.id !== id).forEach((node) => app.graph.remove(node))", node
    )
    frontend.page.hover(".clora-row:has-text('<ada>') img")
    frontend.page.wait_for_timeout(500)
    frontend.picture(DOCS / "panel-museum.png", node, beside=".clora-card")


if __name__ == "__main__":
    main()
