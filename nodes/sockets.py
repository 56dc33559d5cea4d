"""The socket types that this pack adds, and how its nodes build their schemas."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

from comfy_api.latest import io

from ..clora_core.method.draft import AUTO, AUTOMATIC
from ..clora_core.method.recipe import CHOICES, DEFAULT_METHOD, RECIPES
from ..clora_core.method.settings import SETTINGS

CATEGORY = "C-LoRA"
SEED_MAX = 2**53 - 1  # the largest integer that a browser represents exactly

CONCEPT = io.Custom("CLORA_CONCEPT")
COMPANIONS = io.Custom("CLORA_COMPANIONS")
MUSEUM = io.Custom("CLORA_MUSEUM")
RECIPE = io.Custom("CLORA_RECIPE")


def node_schema(
    node_id: str, display_name: str, description: str, *, search_aliases: Sequence[str], **options: Any
) -> io.Schema:
    """A node's schema. Older versions of ComfyUI have no search aliases. options: the other fields of `io.Schema`.

    An output without a display name is called by its id, not by its type.
    """
    options = {"inputs": [], "outputs": [], **options}  # ComfyUI's own default is None
    for output in options["outputs"]:
        output.display_name = output.display_name or output.id
    if any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema)):
        options["search_aliases"] = list(search_aliases)
    return io.Schema(node_id, display_name, CATEGORY, description=description, **options)


def recipe_input(name: str) -> io.Input:
    """The input for a field of `Recipe`, with its default, or with 0 or "auto" if that is automatic."""
    setting, default, automatic = SETTINGS[name], getattr(RECIPES[DEFAULT_METHOD], name), name in AUTOMATIC
    tooltip = f"{setting.meaning[0].upper()}{setting.meaning[1:]}."
    if isinstance(default, bool):
        return io.Boolean.Input(name, default=default, tooltip=tooltip)
    if name in CHOICES:
        options = [AUTO] * automatic + [*get_args(CHOICES[name])]
        tooltip += " auto suits the model and the device." * automatic
        return io.Combo.Input(name, options=options, default=AUTO if automatic else default, tooltip=tooltip)
    limits = {"min": setting.least, "max": setting.most, "step": setting.step}
    if isinstance(default, float):
        limits["round"] = setting.finest
    kind = io.Float if isinstance(default, float) else io.Int
    tooltip += " 0 is auto." * automatic
    return kind.Input(name, default=type(default)(0) if automatic else default, tooltip=tooltip, **limits)


def seed_input(name: str, tooltip: str) -> io.Input:
    """The input for a seed."""
    return io.Int.Input(name, default=0, min=0, max=SEED_MAX, tooltip=tooltip)
