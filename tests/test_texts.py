"""No sentence of this package does anything to a terminal or a log but to be read."""

from hypothesis import given
from hypothesis import strategies as st

from clora_core.errors import CLoRAError, MuseumError
from clora_core.texts import LONGEST, printable

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
    }


def test_what_is_harmless_stays_as_it_is():
    text = "'<my-cat>' ключ 犬 👩‍🚀 می‌خواهم\u3000×\n\tthe next line"
    assert printable(text) == text == str(CLoRAError(text))


def test_the_middle_of_a_long_sentence_is_left_out():
    said = str(CLoRAError(f"'{'x' * 2**20}' is no word. Choose something like <my-cat>."))
    assert len(said) == LONGEST and said.startswith("'xxx") and said.endswith("Choose something like <my-cat>.")
