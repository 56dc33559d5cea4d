"""Sheets of pictures: cells where they belong, and names that can be read."""

import pytest
from PIL import ImageFont

from clora_core import sheets
from clora_core.sheets import confusion_sheet, font_for


def test_cells_of_a_confusion_are_the_darker_the_larger_and_stand_beside_their_names():
    whole = confusion_sheet([[1, 0], [0.25, 0.75]], ["a", "b"], ["a", "b"])
    long = confusion_sheet([[1, 0], [0.25, 0.75]], ["a", "the name of a class"], ["a", "b"])
    assert long.width > whole.width
    red = [[whole.getpixel((whole.width - 42 + 22 * x, whole.height - 42 + 22 * y))[0] for x in (0, 1)] for y in (0, 1)]
    assert red == [[0, 255], [191, 64]]


def test_plain_names_have_the_same_font_everywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sheets, "FONTS", ())
    without = confusion_sheet([[1]], ["pear"], ["pear"])
    monkeypatch.undo()
    assert confusion_sheet([[1]], ["pear"], ["pear"]).tobytes() == without.tobytes()


@pytest.mark.parametrize("letters", ["éü", "кот", "苹果"])
def test_other_letters_are_drawn_and_not_as_boxes(letters: str):
    font = font_for([letters], 12)
    if font.getname() == ImageFont.load_default(12).getname():
        pytest.skip("no font of this machine has them")
    drawn = {bytes(font.getmask(letter)) for letter in (*letters, sheets.ABSENT)}
    assert len(drawn) == len(set(letters)) + 1
