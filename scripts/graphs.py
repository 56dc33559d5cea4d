"""Workflows as ComfyUI's frontend saves them, put together out of what a running ComfyUI says of its nodes."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GAP_X, GAP_Y, TITLE_PX, EDGE = 40, 50, 40, 24
Json = dict[str, Any]


@dataclass(frozen=True)
class Out:
    """An output of a node in a graph."""

    node: int
    slot: int
    kind: str


@dataclass(frozen=True)
class Node:
    """A node in a graph; its outputs go by the name that people see."""

    entry: Json

    def __getitem__(self, name: str) -> Out:
        for slot, output in enumerate(self.entry["outputs"]):
            if output["name"] == name:
                return Out(self.entry["id"], slot, output["type"])
        raise KeyError(f"{self.entry['type']} has no output '{name}'")


@dataclass
class Graph:
    """Nodes in columns, in groups, from left to right.

    definitions: what /object_info answers. name: that its id is made of, so that the same graph is the same file.
    """

    name: str
    definitions: Mapping[str, Any]
    nodes: list[Json] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[Json] = field(default_factory=list)
    _x: int = 0
    _y: int = 0
    _width: int = 0
    _group: tuple[str, int] | None = None
    _lowest: int = 0

    def group(self, title: str) -> None:
        """What comes now stands to the right of all before, in a frame with this title."""
        self._close()
        self._x += self._width + (2 * EDGE + GAP_X if self.nodes else 0)
        self._y = self._lowest = self._width = 0
        self._group = (title, self._x)

    def column(self) -> None:
        """What comes now stands in a new column of the same group."""
        self._x += self._width + GAP_X
        self._y = self._width = 0

    def note(self, text: str, *, size: tuple[int, int] = (420, 300)) -> None:
        """A sheet of Markdown."""
        self._place("MarkdownNote", size, inputs=[], outputs=[], values=[text])

    def add(self, kind: str, size: tuple[int, int], /, *, title: str = "", **given: Any) -> Node:
        """A node. given: each input's source or value by its name; widgets that are not given have their defaults."""
        definition = self.definitions[kind]
        inputs, values = [], []
        for name, (socket, options) in _inputs(definition).items():
            value = given.pop(name, None)
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
        assert not given, f"{kind} has no {', '.join(given)}"
        outputs = [
            {"name": name, "type": output, "slot_index": slot, "links": None}
            for slot, (name, output) in enumerate(zip(definition["output_name"], definition["output"], strict=True))
        ]
        return self._place(kind, size, inputs=inputs, outputs=outputs, values=values, title=title)

    def workflow(self) -> Json:
        """The graph as a file holds it."""
        self._close()
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"c-lora/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
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
    ) -> Node:
        entry: Json = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": [self._x, self._y],
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {"Node name for S&R": kind} if outputs or inputs else {},
            "widgets_values": values,
        }
        self.nodes.append(entry | ({"title": title} if title else {}))
        self._y += size[1] + GAP_Y
        self._width = max(self._width, size[0])
        self._lowest = max(self._lowest, self._y - GAP_Y)
        return Node(self.nodes[-1])

    def _close(self) -> None:
        """Draw the frame of the group that has come to its end."""
        if self._group is None:
            return
        title, left = self._group
        width = self._x + self._width - left + 2 * EDGE
        box = [left - EDGE, -TITLE_PX - GAP_Y, width, self._lowest + TITLE_PX + GAP_Y + EDGE]
        group = {"id": len(self.groups) + 1, "title": title, "bounding": box}
        group |= {"color": "#3f789e", "font_size": 24, "flags": {}}
        self.groups.append(group)
        self._group = None


def _inputs(definition: Mapping[str, Any]) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Each input's type and options, in the order of the definition."""
    found = {}
    for part in ("required", "optional"):
        for name, (socket, *options) in definition["input"].get(part, {}).items():
            found[name] = socket, (options[0] if options else {})
    return found


def _widget(name: str, socket: str | Sequence[Any], options: Mapping[str, Any], value: Any) -> list[Any]:
    """What a file holds for a widget: its value, and a seed's or an upload's button after it."""
    choices = socket if isinstance(socket, list) else options.get("options", [])
    value = options.get("default", choices[0] if choices else "") if value is None else value
    if name in ("seed", "noise_seed") or options.get("control_after_generate"):
        return [value, "fixed"]
    return [value, "image"] if options.get("image_upload") else [value]
