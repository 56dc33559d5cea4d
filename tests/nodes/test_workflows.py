"""The example workflows, as far as they can be checked without a ComfyUI: our nodes, the links, and how they look."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .bare import ROOT
from .schemas import schemas

FOLDER = ROOT / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
WIDGETS = {"io.Int": int, "io.Float": (int, float), "io.String": str, "io.Boolean": bool, "io.Combo": str}
NOTE = "MarkdownNote"
Box = tuple[float, float, float, float]  # left, top, width, height


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def boxes(graph: dict[str, Any]) -> list[Box]:
    return [(*node["pos"], *node["size"]) for node in graph["nodes"]]


def test_there_are_workflows():
    assert {"1-three-concepts", "2-load-a-museum"} <= set(NAMES)
    assert sorted(int(name.partition("-")[0]) for name in NAMES) == list(range(1, len(NAMES) + 1))  # the order to try


@pytest.mark.parametrize("name", NAMES)
def test_nodes_match_their_schemas(name: str):
    """Workflow files store values by their order, so a new input must be written into them."""
    known = schemas()
    for node in workflow(name)["nodes"]:
        if not node["type"].startswith("CLoRA_"):
            continue
        schema = known[node["type"]]
        widgets = [socket for socket in schema.inputs if socket.kind in WIDGETS]
        fed = {entry["name"] for entry in node["inputs"] if entry.get("widget") == {"name": entry["name"]}}
        sockets = [socket.id for socket in schema.inputs if socket.kind not in WIDGETS or socket.id in fed]
        assert [entry["name"] for entry in node["inputs"]] == sockets
        assert len(node["outputs"]) == len(schema.outputs)
        for socket, value in zip(widgets, node["widgets_values"], strict=True):
            assert isinstance(value, WIDGETS[socket.kind]), (socket.id, value)


@pytest.mark.parametrize("name", NAMES)
def test_links_join_matching_sockets(name: str):
    graph = workflow(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    for id, source, slot, target, place, kind in graph["links"]:
        output, taken = by_id[source]["outputs"][slot], by_id[target]["inputs"][place]
        assert output["type"] == taken["type"] == kind
        assert id in output["links"] and taken["link"] == id
    ends = [entry["link"] for node in graph["nodes"] for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in graph["links"])


@pytest.mark.parametrize("name", NAMES)
def test_workflows_have_notes_and_groups_and_nothing_overlaps(name: str):
    graph = workflow(name)
    frames = [tuple(group["bounding"]) for group in graph["groups"]]
    notes = [box for node, box in zip(graph["nodes"], boxes(graph), strict=True) if node["type"] == NOTE]
    others = [box for node, box in zip(graph["nodes"], boxes(graph), strict=True) if node["type"] != NOTE]
    assert notes and frames and all(group["title"] for group in graph["groups"])
    for pair in (*itertools.combinations(boxes(graph), 2), *itertools.combinations([*frames, *notes], 2)):
        assert not meet(*pair), pair
    for box in others:
        assert any(inside(box, frame) for frame in frames), box


@pytest.mark.parametrize("name", NAMES)
def test_workflow_has_its_own_picture(name: str):
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 400


@pytest.mark.parametrize("name", NAMES)
def test_workflow_opens_legibly_in_at_most_two_rows(name: str):
    graph = workflow(name)
    view = graph["extra"]["ds"]
    assert 0.75 <= view["scale"] <= 1
    frames = sorted(group["bounding"] for group in graph["groups"])
    rows: list[float] = []  # the bottom of each
    for _, top, _, height in sorted(frames, key=lambda box: box[1]):
        if rows and top < rows[-1]:
            rows[-1] = max(rows[-1], top + height)
        else:
            rows.append(top + height)
    assert len(rows) <= 2
    left, top = frames[0][0] + view["offset"][0], frames[0][1] + view["offset"][1]
    assert 0 <= left < 100 and 0 <= top < 100  # it begins where people begin to read
    (note,) = (node for node in graph["nodes"] if node["type"] == NOTE)
    assert (note["pos"][0] + note["size"][0] + view["offset"][0]) * view["scale"] < 1500
    assert (note["pos"][1] + note["size"][1] + view["offset"][1]) * view["scale"] < 800


@pytest.mark.parametrize("name", [name for name in NAMES if "own" not in name])
def test_small_pictures_are_shown_large(name: str):
    graph = workflow(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    for _, source, _, target, _, _ in graph["links"]:
        if by_id[target]["type"] == "SaveImage":
            assert by_id[source]["widgets_values"] == ["nearest-exact", 4]


def test_every_picture_has_a_workflow():
    assert {Path(path).stem for path in FOLDER.glob("*.jpg")} <= set(NAMES)


def meet(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def inside(box: Box, frame: Box) -> bool:
    within = box[0] >= frame[0] and box[0] + box[2] <= frame[0] + frame[2]
    return within and box[1] >= frame[1] and box[1] + box[3] <= frame[1] + frame[3]
