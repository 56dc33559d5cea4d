"""The socket types that this pack adds, and the frame that the schemas of all its nodes share."""

import dataclasses
from collections.abc import Sequence

from comfy_api.latest import io

CATEGORY = "C-LoRA"
SEED_MAX = 2**53 - 1  # the largest whole number that a browser holds exactly

CONCEPT = io.Custom("CLORA_CONCEPT")
COMPANIONS = io.Custom("CLORA_COMPANIONS")
MUSEUM = io.Custom("CLORA_MUSEUM")
RECIPE = io.Custom("CLORA_RECIPE")


def described(
    node_id: str,
    display_name: str,
    description: str,
    *,
    search_aliases: Sequence[str],
    inputs: Sequence[io.Input],
    outputs: Sequence[io.Output] = (),
    is_output_node: bool = False,
    hidden: Sequence[io.Hidden] = (),
) -> io.Schema:
    """A node's schema. Search aliases go to those versions of ComfyUI that know them."""
    schema = io.Schema(
        node_id,
        display_name,
        CATEGORY,
        list(inputs),
        list(outputs),
        description=description,
        is_output_node=is_output_node,
        hidden=list(hidden),
    )
    if any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema)):
        schema = dataclasses.replace(schema, search_aliases=list(search_aliases))
    return schema
