"""The socket types that this pack adds, and the frame that the schemas of all its nodes share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from comfy_api.latest import io

from ..clora_core.errors import CLoRAError

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
    is_input_list: bool = False,
) -> io.Schema:
    """A node's schema. Search aliases go to those versions of ComfyUI that know them.

    is_input_list: the node gets every input as a list, all at once, instead of being called for each entry of one.
    """
    schema = io.Schema(
        node_id,
        display_name,
        CATEGORY,
        list(inputs),
        list(outputs),
        description=description,
        is_output_node=is_output_node,
        hidden=list(hidden),
        is_input_list=is_input_list,
    )
    if any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema)):
        schema = dataclasses.replace(schema, search_aliases=list(search_aliases))
    return schema


def one_each_but(*several: str) -> Callable[[Callable], Callable]:
    """Around the `execute` of a node with is_input_list, which then gets single values, but lists of the `several`.

    Raises CLoRAError for a list where one value is meant.
    """

    def one(name: str, given: object) -> object:
        values = given if isinstance(given, list) else [given]
        if name in several:
            return values
        if len(values) != 1:
            raise CLoRAError(f"'{name}' is a list of {len(values)}; only {' and '.join(several)} may be. Connect one.")
        return values[0]

    def around(execute: Callable) -> Callable:
        @functools.wraps(execute)
        def called(cls: type, **inputs: object) -> object:
            return execute(cls, **{name: one(name, given) for name, given in inputs.items()})

        return called

    return around
