"""In front of every node: what it said last is removed, and inputs that the schema forbids raise a clear error."""

import functools
import inspect
import reprlib
from numbers import Integral, Real

from comfy_api.latest import io

from ..clora_core.errors import CLoRAError
from .host.panels import Panel

LONGEST = 500_000  # characters of a text
LISTS = ("images", "captions", "masks")  # inputs that may be lists, on nodes with is_input_list


def guard(node: type[io.ComfyNode]) -> None:
    """Wrap the node's `execute`: it only gets inputs that fit its schema. CLoRAError for all others.

    ComfyUI does not ensure this: NaN passes any minimum and maximum, and a Combo, or an input without a widget, can
    get any value. A node with is_input_list gets `LISTS` as lists and everything else as single values. Errors of ours
    are raised without their cause, which may quote a file verbatim: ComfyUI would write it into its log.
    """
    execute = node.execute.__func__  # type: ignore[attr-defined]
    names = list(inspect.signature(node.execute).parameters)

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: object, **options: object) -> object:
        Panel().clear_text()
        schema = node.GET_SCHEMA()
        inputs = dict(zip(names, args, strict=False)) | options
        for socket in schema.inputs:
            if socket.id not in inputs:
                continue
            value = inputs.pop(socket.id)
            values = value if schema.is_input_list and isinstance(value, list) else [value]
            if values == [None] and socket.optional:
                continue  # the same as not connected
            values = [_checked(socket, value) for value in values]
            if schema.is_input_list and socket.id in LISTS:
                inputs[socket.id] = values
            elif len(values) == 1:
                inputs[socket.id] = values[0]
            else:
                lists = f"{', '.join(LISTS[:-1])} and {LISTS[-1]}"
                raise CLoRAError(f"'{socket.id}' is a list of {len(values)}; only {lists} can be lists. Connect one.")
        try:
            return execute(cls, **inputs)
        except CLoRAError as error:
            raise error from None

    node.execute = classmethod(checked)  # type: ignore[assignment]


def _checked(socket: io.Input, value: object) -> object:
    """The value, numbers as Python's own types. Raises CLoRAError if it does not fit the socket."""
    match socket:
        case io.String.Input() | io.Combo.Input():
            if isinstance(value, str):
                return _checked_text(socket.id, value)
            expected = "a text"
        case io.Boolean.Input():
            if isinstance(value, bool):
                return value
            expected = "true or false"
        case io.Int.Input():
            if isinstance(value, Integral) and socket.min <= value <= socket.max:
                return int(value)
            expected = f"an integer from {socket.min} to {socket.max}"
        case io.Float.Input():
            if isinstance(value, Real) and socket.min <= value <= socket.max:
                return float(value)
            expected = f"a number from {socket.min} to {socket.max}"
        case _:
            if not isinstance(value, (str, int, float, list, dict, type(None))):
                return value
            expected = "connected to a node that outputs one"
    raise CLoRAError(f"'{socket.id}' is {reprlib.repr(value)}; it must be {expected}.")


def _checked_text(name: str, text: str) -> str:
    if len(text) > LONGEST:
        raise CLoRAError(f"'{name}' has {len(text)} characters; the limit is {LONGEST}. Shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise CLoRAError(f"'{name}' contains {half!r}, which is half a character. Delete it.") from None
    return text
