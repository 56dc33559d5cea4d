"""Build workflows in the format of ComfyUI's frontend, from the node definitions of a running ComfyUI."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GAP_X, GAP_Y, TITLE_PX, EDGE = 30, 50, 40, 16
WINDOW = (1520, 810)  # what ComfyUI's page shows of a graph in a window of 1600×900
LEGIBLE = 0.75  # the smallest zoom to open with
SMALL_PX = 20  # high: a node of which only the title is shown; opened, it takes the room that it needs
BUS_PX, GUTTER_PX = 12, 90  # between links that run from row to row, and of all of them
Json = dict[str, Any]


@dataclass(frozen=True)
class Out:
    """An output of a node in a graph."""

    node: int
    slot: int
    kind: str


@dataclass(frozen=True)
class Node:
    """A node in a graph; its outputs have the names that people see."""

    entry: Json

    def __getitem__(self, name: str) -> Out:
        for slot, output in enumerate(self.entry["outputs"]):
            if output["name"] == name:
                return Out(self.entry["id"], slot, output["type"])
        raise KeyError(f"{self.entry['type']} has no output '{name}'")


@dataclass
class Graph:
    """Nodes in columns, in groups, in rows.

    definitions: from /object_info. name: determines the id, so that the same graph gives the same file.
    """

    name: str
    definitions: Mapping[str, Any]
    nodes: list[Json] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[Json] = field(default_factory=list)
    _x: int = 0
    _y: int = 0
    _width: int = 0
    _left: int = 0  # of the groups that stand below one another
    _right: int = 0  # of all in the row
    _top: int = 0
    _lowest: int = 0
    _gutter: int = 0  # the top of the space between both rows
    _frame: tuple[str, int, int] | None = None  # the open group's title, left and top

    def group(self, title: str) -> None:
        """Start a group with this title, to the right of all others."""
        self._close()
        self._left = self._right + 2 * EDGE + GAP_X if self._right else 0
        self._y = self._top
        self._open(title)

    def below(self, title: str) -> None:
        """Start a group with this title, below the last one."""
        self._close()
        self._y += EDGE + TITLE_PX + GAP_X
        self._open(title)

    def row(self) -> None:
        """Start a second row, below all groups."""
        self._close()
        self._gutter = round(self._around()[3])
        self._top = self._gutter + GUTTER_PX + TITLE_PX + GAP_Y
        self._x = self._left = self._right = 0

    def column(self) -> None:
        """Start a new column of the same group."""
        assert self._frame
        self._x += self._width + GAP_X
        self._y, self._width = self._frame[2], 0

    def note(self, text: str, *, size: tuple[int, int] = (420, 300)) -> None:
        """Add a Markdown note, below the last group."""
        self._close()
        self._x = self._left
        self._place("MarkdownNote", size, inputs=[], outputs=[], values=[text])

    def add(self, kind: str, size: tuple[int, int], /, *, title: str = "", small: bool = False, **sources: Any) -> Node:
        """A node. sources: input → the output or value that it gets; other widgets have their defaults.

        small: only its title is shown.
        """
        definition = self.definitions[kind]
        inputs, values = [], []
        for name, (socket, options) in _inputs(definition).items():
            value = sources.pop(name, None)
            widget, linked = isinstance(socket, list) or socket in WIDGETS, isinstance(value, Out)
            if widget:
                values += _widget(name, socket, options, None if linked else value)
            if linked or not widget:
                inputs.append(
                    {"name": name, "type": socket, "link": None} | ({"widget": {"name": name}} if widget else {})
                )
            if linked:
                self._link(value, len(self.nodes) + 1, len(inputs) - 1)
                inputs[-1]["link"] = len(self.links)
        assert not sources, f"{kind} has no {', '.join(sources)}"
        outputs = [
            {"name": name, "type": output, "slot_index": slot, "links": None}
            for slot, (name, output) in enumerate(zip(definition["output_name"], definition["output"], strict=True))
        ]
        return self._place(kind, size, inputs=inputs, outputs=outputs, values=values, title=title, small=small)

    def workflow(self) -> Json:
        """The content of the workflow file."""
        self._close()
        left, top, right, bottom = self._around()
        fitting = min(WINDOW[0] / (right - left + 2 * GAP_X), WINDOW[1] / (bottom - top + 2 * GAP_X))
        zoom = round(min(max(fitting, LEGIBLE), 1), 2)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"c-lora/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": zoom, "offset": [GAP_X - left, GAP_X - top]}, **self._buses()},
            "version": 0.4,
        }

    def _link(self, source: Out, target: int, slot: int) -> None:
        self.links.append([len(self.links) + 1, source.node, source.slot, target, slot, source.kind])
        output = self.nodes[source.node - 1]["outputs"][source.slot]
        output["links"] = [*(output["links"] or []), len(self.links)]

    def _place(
        self,
        kind: str,
        size: tuple[int, int],
        *,
        inputs: list[Json],
        outputs: list[Json],
        values: list[Any],
        title: str = "",
        small: bool = False,
    ) -> Node:
        entry: Json = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": [self._x, self._y],
            "size": [size[0], SMALL_PX] if small else list(size),
            "flags": {"collapsed": True} if small else {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"Node name for S&R": kind} if outputs or inputs else {},
            "widgets_values": values,
        }
        self.nodes.append(entry | ({"title": title} if title else {}))
        self._y += (SMALL_PX if small else size[1]) + GAP_Y
        self._width = max(self._width, size[0])
        self._right = max(self._right, self._x + size[0])
        self._lowest = max(self._lowest, self._y - GAP_Y)
        return Node(self.nodes[-1])

    def _open(self, title: str) -> None:
        self._x, self._width, self._lowest = self._left, 0, self._y
        self._frame = title, self._left, self._y

    def _close(self) -> None:
        """End the current group and add its frame."""
        if self._frame is None:
            return
        title, left, top = self._frame
        width, height = self._x + self._width - left + 2 * EDGE, self._lowest - top + TITLE_PX + GAP_Y + EDGE
        box = [left - EDGE, top - TITLE_PX - GAP_Y, width, height]
        group = {"id": len(self.groups) + 1, "title": title, "bounding": box}
        group |= {"color": "#3f789e", "font_size": 24, "flags": {}}
        self.groups.append(group)
        self._y, self._frame = self._lowest + GAP_Y, None

    def _buses(self) -> Json:
        """Reroutes for links between the rows: along the space between them, then down beside the target.

        Every source has its own line, from right to left or from left to right.
        """
        points: list[Json] = []
        ends: list[Json] = []
        sources: dict[tuple[int, int], list[list[Any]]] = {}
        for link in self.links:
            if self._gutter and self._is_above(link[1]) != self._is_above(link[3]):
                sources.setdefault((link[1], link[2]), []).append(link)

        def point(x: float, y: float, links: list[list[Any]], parent: int | None) -> int:
            points.append({"id": len(points) + 1, "pos": [x, y], "linkIds": [link[0] for link in links]})
            points[-1] |= {} if parent is None else {"parentId": parent}
            return len(points)

        for lane, ((node, _), links) in enumerate(sources.items(), 1):
            y, aside = self._gutter + lane * BUS_PX, GAP_X - 5 * lane
            left, _, width, _ = self._frame_of(node)
            stops: dict[float, list[list[Any]]] = {}
            for link in links:
                stops.setdefault(self.nodes[link[3] - 1]["pos"][0] - aside, []).append(link)
            begin = left + width + aside
            first = point(begin, y, links, None)
            for side in (
                sorted(x for x in stops if x >= begin),
                sorted((x for x in stops if x < begin), reverse=True),
            ):
                parent = first
                for place, x in enumerate(side):
                    parent = point(x, y, [link for later in side[place:] for link in stops[later]], parent)
                    ends += [{"id": link[0], "parentId": parent} for link in stops[x]]
        return {"reroutes": points, "linkExtensions": ends} if points else {}

    def _is_above(self, node: int) -> bool:
        return self.nodes[node - 1]["pos"][1] < self._gutter

    def _frame_of(self, node: int) -> list[int]:
        x, y = self.nodes[node - 1]["pos"]
        frames = (group["bounding"] for group in self.groups)
        return next(box for box in frames if 0 <= x - box[0] <= box[2] and 0 <= y - box[1] <= box[3])

    def _around(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of all nodes and frames."""
        boxes = [(*node["pos"], *node["size"]) for node in self.nodes] + [group["bounding"] for group in self.groups]
        lefts, tops, widths, heights = zip(*boxes, strict=True)
        rights = [left + width for left, width in zip(lefts, widths, strict=True)]
        return min(lefts), min(tops), max(rights), max(top + height for top, height in zip(tops, heights, strict=True))


def _inputs(definition: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Each input's type and options, in the order of the definition."""
    inputs = {}
    for part in ("required", "optional"):
        for name, (socket, *options) in definition["input"].get(part, {}).items():
            inputs[name] = socket, (options[0] if options else {})
    return inputs


def _widget(name: str, socket: str | Sequence[Any], options: Mapping[str, Any], value: Any) -> list[Any]:
    """The values of a widget in a file: its own, and that of a seed's or an upload's button."""
    choices = socket if isinstance(socket, list) else options.get("options", [])
    value = options.get("default", choices[0] if choices else "") if value is None else value
    if name in ("seed", "noise_seed") or options.get("control_after_generate"):
        return [value, "fixed"]
    return [value, "image"] if options.get("image_upload") else [value]
