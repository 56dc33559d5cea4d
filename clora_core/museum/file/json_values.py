"""Read JSON from untrusted sources: every function checks one type and raises MuseumError for anything else.

`what` is the value's name in the error, for example "exhibit 2: rank".
"""

import json
import math
import reprlib
from collections.abc import Collection, Mapping

from ...errors import MuseumError

COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_text(value: object, what: str) -> str:
    """The value as compact JSON, the same text for the same value."""
    try:
        text = COMPACT.encode(value)
        text.encode()  # fails for lone surrogates, which UTF-8 cannot hold
        return text
    except (TypeError, ValueError, RecursionError) as error:
        advice = "Use strings, finite numbers and lists."
        raise MuseumError(f"{what} cannot be written as JSON ({error}). {advice}") from error


def json_value(text: str, what: str) -> object:
    """The value of a JSON text. Repeated keys, very deep nesting and non-finite numbers are refused."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise MuseumError(f"{what} is invalid JSON: {error}.") from error


def fields(value: object, names: Collection[str], what: str) -> Mapping[str, object]:
    """A JSON object with exactly these keys."""
    entries = mapping(value, what)
    if entries.keys() == frozenset(names):
        return entries
    if missing := sorted(set(names) - set(entries)):
        raise MuseumError(f"{what} has no '{missing[0]}'.")
    if unknown := sorted(set(entries) - set(names)):
        raise MuseumError(f"{what} has an unknown entry '{_short(unknown[0])}'. Known: {', '.join(names)}.")
    return entries


def mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", what)
    return value


def array(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise _unexpected(value, "a list", what)
    return value


def text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _unexpected(value, "a string", what)
    if not value.isascii():
        json_text(value, what)
    return value


def integer(value: object, what: str, *, least: int) -> int:
    """An integer of at least `least` that fits 63 bits."""
    if type(value) is not int or not least <= value < 2**63:
        raise _unexpected(value, f"an integer of at least {least}", what)
    return value


def number(value: object, what: str) -> float:
    """A finite number."""
    if (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value)):
        return float(value)
    raise _unexpected(value, "a finite number", what)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is repeated")
    return entries


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{_short(digits)} is not a finite number")
    return value


def _unexpected(value: object, expected: str, what: str) -> MuseumError:
    return MuseumError(f"{what} is {_short(reprlib.repr(value))}; it must be {expected}.")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
