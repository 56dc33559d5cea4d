"""The texts of the panels: complete in every language, and none unused."""

import json
import re
from collections.abc import Iterator
from typing import get_args

import pytest

from clora_core.method.recipe import Applied

from .bare import ROOT

LANGUAGES = ("en", "zh", "ja")
SCRIPTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").glob("*.js")))


def texts(language: str) -> dict[str, str]:
    """ "museum.search" → what it says"""
    told = json.loads((ROOT / f"locales/{language}/main.json").read_text(encoding="utf-8"))
    return dict(_flat(told["clora"]))


def _flat(entries: dict, before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_all_texts_with_the_same_values(language: str):
    english, other = texts("en"), texts(language)
    assert list(other) == list(english)
    for key, text in other.items():
        assert text and set(re.findall(r"%\w+", text)) == set(re.findall(r"%\w+", english[key])), key
        assert not set("{}@|") & set(text), f"the frontend would fill in {text}"


def test_every_way_of_applying_deltas_has_a_text():
    assert {f"applied.{name}" for name in get_args(Applied)} - set(texts("en")) == {"applied.everywhere"}
    assert len([key for key in texts("en") if key.startswith("applied.")]) == len(get_args(Applied)) - 1


def test_exactly_the_existing_texts_are_used():
    whole = set(re.findall(r'say\("([\w.]+)"', SCRIPTS))
    beginnings = set(re.findall(r"say\(`(\w+\.)\$\{", SCRIPTS))
    known = texts("en")
    assert whole <= set(known)
    assert {beginning.partition(".")[0] for beginning in beginnings} <= {key.partition(".")[0] for key in known}
    unused = [key for key in known if key not in whole and not key.startswith(tuple(beginnings))]
    assert not unused
