"""Take the pictures of example_workflows/, out of real runs: `python -m scripts.screenshots [--steps N]`.

Needs a ComfyUI, Playwright and a Chromium, as tests/browser does. The workflows of the starter model are run one after
the other, so that later ones find the museum that the first one saves; those for people's own pictures need a
checkpoint, and are photographed as they are.
"""

import argparse
import io
import json

from PIL import Image

from tests.browser.conftest import CHROMIUM
from tests.browser.frontend import Frontend, chromium

from .workflows import FOLDER, OWN, STARTER, started

WIDTH_PX, MARGIN_PX = 1800, 40
BARS_PX = 140  # what the page's own bars may cover at each side
RUN_S = 3600  # that a slow machine may take for one workflow
SHARP = {  # texts are drawn however small: the setting of older and of newer frontends
    "LiteGraph_Canvas_LowQualityRenderingZoomThreshold": 0.1,
    "LiteGraph_Canvas_MinFontSizeForLOD": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="that each concept is taught (the workflows' own)")
    parser.add_argument("names", nargs="*", help="of the workflows (all)")
    arguments = parser.parse_args()
    with started() as server, chromium(CHROMIUM) as browser:
        for make in (*STARTER, *OWN):
            name = make.__name__.replace("_", "-")
            if not arguments.names or name in arguments.names:
                with Frontend.opened(browser, server.address, size=(WIDTH_PX, 900), **SHARP) as frontend:
                    photograph(frontend, name, steps=arguments.steps, run=make in STARTER)


def photograph(frontend: Frontend, name: str, *, steps: int | None, run: bool) -> None:
    """Load a workflow, run it to its end if wished, and keep what the page then shows of it."""
    frontend.load(name, **({"CLoRA_TrainStep": {"steps": steps}} if steps and run else {}))
    left, top, right, bottom = around(name)
    scale = (WIDTH_PX - 2 * MARGIN_PX) / (right - left)
    height = round((bottom - top) * scale) + 2 * MARGIN_PX
    frontend.page.set_viewport_size({"width": WIDTH_PX + 2 * BARS_PX, "height": height + 2 * BARS_PX})
    if run:
        frontend.run()
        frontend.wait_until_idle(RUN_S)
    frontend.page.evaluate(
        """([scale, x, y]) => {
            const view = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect()
            view.scale = scale
            view.offset[0] = (x - canvas.x) / scale
            view.offset[1] = (y - canvas.y) / scale
            app.canvas.setDirty(true, true)
        }""",
        [scale, BARS_PX + MARGIN_PX - left * scale, BARS_PX + MARGIN_PX - top * scale],
    )
    frontend.page.wait_for_timeout(3000)
    shot = frontend.page.screenshot(clip={"x": BARS_PX, "y": BARS_PX, "width": WIDTH_PX, "height": height})
    with Image.open(io.BytesIO(shot)) as picture:
        picture.convert("RGB").save(FOLDER / f"{name}.jpg", quality=85)


def around(name: str) -> tuple[float, float, float, float]:
    """The box that holds all nodes and frames of a workflow."""
    graph = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    boxes += [group["bounding"] for group in graph["groups"]]
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[0] + box[2] for box in boxes),
        max(box[1] + box[3] for box in boxes),
    )


if __name__ == "__main__":
    main()
