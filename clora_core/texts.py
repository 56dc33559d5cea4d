"""Texts of files and people, which may hold anything, on their way to a file, a screen or a log."""

import re
import unicodedata

LONGEST, BEGINNING = 800, 500  # characters of a sentence, and those of its beginning when the middle is left out

# Terminals obey control characters, readers are misled by text that runs the other way, and halves of characters
# (surrogates) can be written nowhere.
UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def unprintable(text: str, allowed: str = "") -> str:
    """The first control character that is not allowed, or half of a character; "" if there is none."""
    if text.isprintable():
        return ""
    odd = (character for character in text if unicodedata.category(character) in ("Cc", "Cs"))
    return next((character for character in odd if character not in allowed), "")


def printable(text: str) -> str:
    r"""The text for a screen or a log: what does more than it shows stands as \u001b, as in JSON. Lines stay lines."""
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str) -> str:
    """A sentence without its middle where that is too long, as it is when it quotes a long value."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:BEGINNING]}…{text[1 + BEGINNING - LONGEST :]}"
