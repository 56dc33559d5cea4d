"""No sentence of this package does anything to a terminal or a log but to be read."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clora_core.errors import CLoRAError, MuseumError
from clora_core.texts import LONGEST, normal, printable, printable_values

ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=200)


@given(ANYTHING)
def test_an_error_can_be_written_anywhere_whatever_it_quotes(value: str):
    said = str(MuseumError(f"'{value}' is no museum."))
    said.encode()
    assert not set(said) & {
        *map(chr, range(9)),
        *map(chr, range(11, 32)),
        *map(chr, range(127, 160)),
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\U000e0041",
    }
    assert printable(said) == said


def test_what_is_harmless_stays_as_it_is():
    text = "'<my-cat>' ключ 犬 👩‍🚀 می‌خواهم\u3000×\n\tthe next line"
    assert printable(text) == text == str(CLoRAError(text))


def test_only_joiners_and_selectors_are_not_escaped():
    """Of all characters that Unicode calls formats; the others show themselves, such as the signs of Arabic numbers."""
    formats = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"]
    kept = {character for character in formats if printable(character) == character}
    assert kept == {*"\u200c\u200d", *filter(shows_itself, formats)}
    for character in {*formats, *"\u3164\uffa0\u115f\u2800\ufe0f\u034f\U000e0100"} - set(filter(shows_itself, formats)):
        assert normal(f"<my{character}cat>") == "<mycat>", ascii(character)


def shows_itself(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith(("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN")) and character != "\u061c"


@given(ANYTHING)
def test_the_normal_form_is_one_and_shows_everything(value: str):
    once = normal(value)
    assert normal(once) == once and normal(f"{value}\u200b\u202e") == once
    escaped = printable(once).replace("\\u", "")
    assert not [c for c in escaped if unicodedata.category(c) == "Cf" and not shows_itself(c)]


@pytest.mark.parametrize("character", ["\x1b", "\x7f", "\r", "\u2028", "\u202e", "\ud800", "\U000e0041"])
def test_an_escape_is_that_of_json(character: str):
    assert json.loads(f'"{printable(character)}"') == character


def test_every_text_in_a_value_is_escaped():
    found = printable_values(
        {"a\u202e": ["\x1b", 1, None, {"b": ("<x>\u200b", True)}], "picture": "data:image/jpeg,AA"}
    )
    picture = {"picture": "data:image/jpeg,AA"}
    assert found == {"a\\u202e": ["\\u001b", 1, None, {"b": ["<x>\\u200b", True]}]} | picture


def test_the_middle_of_a_long_sentence_is_left_out():
    said = str(CLoRAError(f"'{'x' * 2**20}' is no word. Choose something like <my-cat>."))
    assert len(said) == LONGEST and said.startswith("'xxx") and said.endswith("Choose something like <my-cat>.")
