"""The nodes' schemas, read from their sources, since they can only be built inside ComfyUI."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clora_core.method.recipe import CHOICES, Recipe
from clora_core.method.settings import ADVANCED, BASIC, SETTINGS

from .bare import ROOT

NODES = ROOT / "nodes"
LIMITS = dict.fromkeys(("default", "min", "max"), "")


@dataclass(frozen=True)
class Socket:
    """An input or output. options: what else its line says, as source."""

    id: str
    kind: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class Schema:
    """What `node_schema(…)` is called with in a node's `define_schema`."""

    name: str  # of the class
    id: str
    display_name: str
    description: str
    search_aliases: tuple[str, ...]
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]


def schemas() -> dict[str, Schema]:
    """Every schema by its id."""
    found = [schema for path in sorted(NODES.glob("*.py")) for schema in _in_file(path)]
    return {schema.id: schema for schema in found}


def _in_file(path: Path) -> Iterator[Schema]:
    for kind in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(kind, ast.ClassDef) and any(ast.unparse(base) == "io.ComfyNode" for base in kind.bases):
            calls = [node for node in ast.walk(kind) if isinstance(node, ast.Call)]
            (call,) = (call for call in calls if ast.unparse(call.func) == "node_schema")
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            id, display_name, description = (ast.literal_eval(argument) for argument in call.args)
            aliases = tuple(ast.literal_eval(options["search_aliases"]))
            sockets = (tuple(_sockets(options.get(name))) for name in ("inputs", "outputs"))
            yield Schema(kind.name, id, display_name, description, aliases, *sockets)


def _sockets(listed: ast.expr | None) -> Iterator[Socket]:
    for call in listed.elts if isinstance(listed, ast.List) else ():
        match ast.unparse(call):
            case "*map(recipe_input, BASIC)":
                yield from map(_of_recipe, BASIC)
            case "*map(recipe_input, ADVANCED)":
                yield from map(_of_recipe, ADVANCED)
            case _:
                yield _socket(call)


def _socket(call: ast.expr) -> Socket:
    assert isinstance(call, ast.Call)
    id, kind = ast.literal_eval(call.args[0]), ast.unparse(call.func)
    if kind == "seed_input":
        return Socket(id, "io.Int", {**LIMITS, "tooltip": ast.unparse(call.args[1])})
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    return Socket(id, kind.rpartition(".")[0], options)


def _of_recipe(field: str) -> Socket:
    """What `recipe_input` makes of a field of a recipe; tests/host compares it."""
    default = getattr(Recipe(), field)
    kinds = {bool: "io.Boolean", int: "io.Int", float: "io.Float"}
    kind = "io.Combo" if field in CHOICES else kinds[type(default)]
    return Socket(field, kind, {**LIMITS, "tooltip": SETTINGS[field].meaning})
