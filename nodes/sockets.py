"""The socket types that this pack adds, and how its nodes build their schemas."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

CATEGORY = "C-LoRA"
SEED_MAX = 2**53 - 1  # the largest integer that a browser represents exactly

CONCEPT = io.Custom("CLORA_CONCEPT")
COMPANIONS = io.Custom("CLORA_COMPANIONS")
MUSEUM = io.Custom("CLORA_MUSEUM")
RECIPE = io.Custom("CLORA_RECIPE")


def node_schema(
    node_id: str, display_name: str, description: str, *, search_aliases: Sequence[str], **options: Any
) -> io.Schema:
    """A node's schema. Older versions of ComfyUI have no search aliases. options: the other fields of `io.Schema`."""
    options = {"inputs": [], "outputs": [], **options}  # ComfyUI's own default is None
    if any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema)):
        options["search_aliases"] = list(search_aliases)
    return io.Schema(node_id, display_name, CATEGORY, description=description, **options)
