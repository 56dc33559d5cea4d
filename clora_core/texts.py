"""Make texts from users and files safe to print, log and store."""

import json
import re
import unicodedata

LONGEST, BEGINNING = 800, 500  # characters of a shortened text, and of its part before the ellipsis

# Control characters command terminals, direction overrides mislead readers, and lone surrogates cannot be encoded.
UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def unprintable(text: str, allowed: str = "") -> str:
    """The first control character or lone surrogate that is not in `allowed`; "" if there is none."""
    if text.isprintable():
        return ""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), "")


def normal(text: str) -> str:
    """The text in Unicode NFC and without invisible characters (category Cf), as words are compared and kept."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(c for c in text if unicodedata.category(c) != "Cf"))


def printable(text: str) -> str:
    r"""The text with unsafe characters escaped as in JSON (\u001b). Newlines and tabs are kept."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


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
