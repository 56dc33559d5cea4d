"""The guard before every node: what ComfyUI lets through, and no schema promises, is refused in one sentence."""

import functools
import inspect
import reprlib
from numbers import Integral, Real

from comfy_api.latest import io

from ..clora_core.errors import CLoRAError

LONGEST = 500_000  # characters of a text


def guard(node: type[io.ComfyNode]) -> None:
    """From now on the node's `execute` gets only what its schema promises; for anything else CLoRAError is raised.

    ComfyUI does not see to that: NaN is neither below a minimum nor above a maximum, and a Combo, or an input that has
    no widget, may be given anything. Of our own errors the causes are left out, which may quote a file as it is:
    ComfyUI writes all of them into its log.
    """
    execute = node.execute.__func__  # type: ignore[attr-defined]
    names = list(inspect.signature(node.execute).parameters)

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: object, **more: object) -> object:
        schema = node.GET_SCHEMA()
        inputs = dict(zip(names, args, strict=False)) | more
        for asked in schema.inputs:
            if asked.id not in inputs:
                continue
            given = inputs.pop(asked.id)
            values = given if schema.is_input_list and isinstance(given, list) else [given]
            if values == [None] and asked.optional:
                continue  # as if nothing were connected
            checked = [_checked(asked, value) for value in values]
            inputs[asked.id] = checked if values is given else checked[0]
        try:
            return execute(cls, **inputs)
        except CLoRAError as error:
            raise error from None

    node.execute = classmethod(checked)  # type: ignore[assignment]


def _checked(asked: io.Input, given: object) -> object:
    """What was given for an input, a number as Python's own. Raises CLoRAError for what the schema has no place for."""
    match asked:
        case io.String.Input() | io.Combo.Input():
            if isinstance(given, str):
                return _checked_text(asked.id, given)
            wanted = "a text"
        case io.Boolean.Input():
            if isinstance(given, bool):
                return given
            wanted = "true or false"
        case io.Int.Input():
            if isinstance(given, Integral) and asked.min <= given <= asked.max:
                return int(given)
            wanted = f"a whole number from {asked.min} to {asked.max}"
        case io.Float.Input():
            if isinstance(given, Real) and asked.min <= given <= asked.max:
                return float(given)
            wanted = f"a number from {asked.min} to {asked.max}"
        case _:
            if not isinstance(given, (str, int, float, list, dict, type(None))):
                return given
            wanted = "connected to a node that gives one"
    raise CLoRAError(f"'{asked.id}' is {reprlib.repr(given)}; it must be {wanted}.")


def _checked_text(name: str, text: str) -> str:
    if len(text) > LONGEST:
        raise CLoRAError(f"'{name}' has {len(text)} characters; at most {LONGEST} are read. Shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise CLoRAError(
            f"'{name}' holds {half!r}, half of a character, which no file can hold. Leave it out."
        ) from None
    return text
