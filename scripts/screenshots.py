"""Make the square pictures of example_workflows/ from real runs: `python -m scripts.screenshots [NAME …]`.

The workflows of the starter model run one after another, since later ones load the museum that the first one saves.
Their results are combined in one picture. The workflows for users' own pictures need a checkpoint, so a screenshot of
their nodes is taken, which needs Playwright and Chromium, like tests/browser.
"""

import argparse
import io
import json
from typing import Any

from PIL import Image, ImageOps

from tests.browser.conftest import CHROMIUM
from tests.browser.frontend import Frontend, chromium
from tests.host.server import Server
from tests.host.workflow import as_prompt

from .workflows import FOLDER, OWN, STARTER, started

SIDE_PX = 512
RUN_S = 3600  # that a slow machine may take for one workflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the workflows (all)")
    names = parser.parse_args().names
    with started() as server:
        make_pictures(server, names)


def make_pictures(server: Server, names: list[str]) -> None:
    definitions = server.get("/object_info")
    for make in (*STARTER, *OWN):
        graph = make(definitions)
        if names and graph.name not in names:
            continue
        picture = photographed(server, graph.workflow()) if make in OWN else results(server, graph.workflow())
        picture.save(FOLDER / f"{graph.name}.jpg", quality=90)


def results(server: Server, workflow: dict[str, Any]) -> Image.Image:
    """The results of a workflow of the starter model in a square: all its pictures, or its first figure."""
    prompt = as_prompt(workflow, server.get("/object_info"))
    run = server.run(prompt, RUN_S)
    assert run.succeeded, run.error
    batches = [server.pictures(run, id) for id, node in prompt.items() if node["class_type"] == "SaveImage"]
    if not batches:
        figure = next(id for id, node in prompt.items() if node["class_type"] == "PreviewImage")
        return ImageOps.pad(Image.fromarray(server.pictures(run, figure)[0]), (SIDE_PX, SIDE_PX), color="white")
    columns = 2 if len(batches) == 1 else max(2, len(batches))
    count = max(1, columns**2 // len(batches))
    pictures = [picture for batch in batches for picture in batch[:count]]
    sheet = Image.new("RGB", (SIDE_PX, SIDE_PX), "#202020")
    side = SIDE_PX // columns
    for place, picture in enumerate(pictures):
        small = ImageOps.pad(Image.fromarray(picture), (side, side), Image.Resampling.NEAREST, color="#202020")
        sheet.paste(small, (place % columns * side, place // columns * side))
    return sheet


def photographed(server: Server, workflow: dict[str, Any]) -> Image.Image:
    """A screenshot of the training nodes."""
    left, top, *_ = next(group["bounding"] for group in workflow["groups"] if group["title"].startswith("2"))
    with (
        chromium(CHROMIUM) as browser,
        Frontend.opened(browser, server.address, size=(1200, 1100)) as frontend,
    ):
        frontend.page.evaluate(
            """async ([workflow, x, y]) => {
                await app.loadGraphData(workflow)
                const view = app.canvas.ds
                view.scale = 1
                view.offset = [100 - x, 100 - y]
                app.canvas.setDirty(true, true)
            }""",
            [json.loads(json.dumps(workflow)), left, top],
        )
        frontend.page.wait_for_timeout(2000)
        shot = frontend.page.screenshot(clip={"x": 100, "y": 100, "width": 750, "height": 750})
    return Image.open(io.BytesIO(shot)).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
