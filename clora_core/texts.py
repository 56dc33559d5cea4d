"""Make texts from users and files safe to print, log and store."""

import json
import re
import unicodedata
from typing import Any

LONGEST, BEGINNING = 800, 500  # characters of a shortened text, and of its part before the ellipsis

# Nobody sees these: Unicode's Default_Ignorable_Code_Point, interlinear annotations, and the blank of Braille.
# Scripts and emoji need the joiners and variation selectors among them; all others can only mislead a reader.
JOINERS = "\u034f\u180b-\u180d\u180f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
MISLEADING = (
    "\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
INVISIBLE = re.compile(f"[{JOINERS}{MISLEADING}]+")
# Control characters command terminals, separators break lines, and lone surrogates cannot be encoded.
UNSAFE = re.compile(f"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{MISLEADING}]")


def unprintable(text: str, allowed: str = "") -> str:
    """The first control character or lone surrogate that is not in `allowed`; "" if there is none."""
    if text.isprintable():
        return ""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), "")


def normal(text: str) -> str:
    """The text in Unicode NFC and without invisible characters, as words are compared and kept."""
    return text if text.isascii() else unicodedata.normalize("NFC", INVISIBLE.sub("", text))


def printable(text: str) -> str:
    r"""The text with unsafe and misleading characters escaped as in JSON (\u001b). Newlines and tabs are kept."""
    return UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def printable_values(value: object) -> Any:
    """Plain JSON values with every text in them, keys too, `printable`."""
    match value:
        case str():
            return value if value.isascii() and value.isprintable() else printable(value)
        case dict():
            return {printable_values(key): printable_values(each) for key, each in value.items()}
        case list() | tuple():
            return [printable_values(each) for each in value]
    return value


def misleading(text: str) -> str:
    """The first character that `printable` escapes; "" if there is none."""
    return match[0] if (match := UNSAFE.search(text)) else ""


def encodable(text: str, encoding: str) -> str:
    r"""The text with characters that the encoding does not have escaped as in JSON (\u6728)."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError as error:
        bad = set(text[error.start :]) - set(text[error.start :].encode(encoding, "ignore").decode(encoding))
        return text.translate({ord(character): json.dumps(character)[1:-1] for character in bad})


def shortened(text: str) -> str:
    """The text with its middle replaced by an ellipsis if it is too long."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:BEGINNING]}…{text[1 + BEGINNING - LONGEST :]}"


def counted(count: int, noun: str) -> str:
    """ "1 class", "2 classes", "3 steps" """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"
