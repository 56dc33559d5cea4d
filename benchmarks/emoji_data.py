"""Emoji by eleven designers as a world for the starter's kind of model: pictures, names, words and captions.

The pictures are those of `emoji_pictures.py`, the names those of the npm package emojibase-data (MIT). Licenses of the
sets: noto, noto-v1 and fxemoji Apache 2.0; twemoji, emojione and emojione-monotone CC BY 4.0; openmoji and emojione-v1
CC BY-SA 4.0; the three of fluent-emoji MIT. Nothing of them is in this repository.

The base learns `KNOWN` things by the `TRAINED` designers, the `FAMILIAR` ones longest. It never sees the `NEW` things,
which are concepts to learn, nor the other five designers, which are styles to learn.
"""

import io
import json
import random
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from benchmarks.emoji_pictures import SIDE_PX, download, downloaded_drawings, plain, rendered
from clora_core.pictures import as_floats, to_bytes
from clora_core.starter.layout import END, START, UNKNOWN

NAMES = ("emojibase-data", "17.0.0")
TRAINED = ("noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione", "emojione-monotone")
STYLES = ("openmoji", "fxemoji", "emojione-v1", "noto-v1", "fluent-emoji-high-contrast")
DESIGNERS = (*TRAINED, *STYLES)
WORDS = {"fluent-emoji": "fluent", "fluent-emoji-flat": "flat", "emojione-monotone": "monotone"}  # of trained designers
KNOWN, FAMILIAR, NEW, EVERYDAY = 340, 100, 60, 160
GRAMMAR = "a picture of in style".split()
MOST_WORDS = 6  # of a name


@dataclass(frozen=True, eq=False)
class World:
    """pictures: (name, designer) → (3, 64, 64) uint8. known, new: names of things."""

    pictures: dict[tuple[str, str], Tensor]
    known: tuple[str, ...]
    new: tuple[str, ...]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Three special tokens and all words of captions; the index is the token's id."""
        words = {word for name in self.known for word in name.split()}
        return [START, END, UNKNOWN, *sorted({*words, *GRAMMAR, *map(style_word, TRAINED)})]

    def floats(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """The pictures of these pairs of a name and a designer, (n, 3, 64, 64) in [-1, 1]."""
        return as_floats(torch.stack([self.pictures[pair] for pair in pairs]))

    def drawn(self, names: Sequence[str], designers: Sequence[str]) -> list[tuple[str, str]]:
        """All pairs of these names and designers that have a picture."""
        return [(name, designer) for name in names for designer in designers if (name, designer) in self.pictures]


def style_word(designer: str) -> str:
    """The word that captions call a trained designer."""
    return WORDS.get(designer, designer)


def slug(name: str) -> str:
    """A name as a subject: without blanks."""
    return name.replace(" ", "-")


def open_world(work: Path) -> World:
    """Download, draw and split; the drawn pictures are kept in the folder."""
    path = work / "pictures.safetensors"
    if not path.exists():
        _draw(work, path)
    pictures = {tuple(key.split("|")): value for key, value in load_file(path).items()}
    drawn: dict[str, set[str]] = {}
    for name, designer in pictures:
        drawn.setdefault(name, set()).add(designer)
    able = sorted(name for name, designers in drawn.items() if designers.issuperset(TRAINED))
    several = [name for name in able if len(drawn[name]) >= len(DESIGNERS) - 1]
    rng = random.Random("emoji world")
    new = rng.sample(several, NEW)
    known = rng.sample([name for name in able if name not in new], KNOWN)
    return World(pictures, tuple(known), tuple(new))  # type: ignore[arg-type]


def _draw(work: Path, path: Path) -> None:
    """Write the pictures of all things that have a short name of their own."""
    drawings = downloaded_drawings(work / "downloads")
    names = _names(work / "downloads")
    pictures = {}
    for designer, codes in tqdm(drawings.items(), "drawing"):
        for code, drawing in codes.items():
            if code in names:
                with Image.open(io.BytesIO(rendered(drawing))) as picture:
                    pictures[f"{names[code]}|{designer}"] = to_bytes(picture)
    save_file(pictures, path)


def _names(downloads: Path) -> dict[str, str]:
    """Code point → English name in plain words. Without flags, buttons with letters and other names for two emoji."""
    with tarfile.open(fileobj=io.BytesIO(download(*NAMES, downloads))) as files:
        entries = json.load(files.extractfile("package/en/data.json"))  # type: ignore[arg-type]
    names: dict[str, list[str]] = {}
    for entry in entries:
        if code := plain(entry["hexcode"].lower()):
            name = " ".join(re.findall(r"[^\W_]+", entry["label"].lower()))
            names.setdefault(name, []).append(code)
    return {codes[0]: name for name, codes in names.items() if len(codes) == 1 and len(name.split()) <= MOST_WORDS}


def varied(pictures: Tensor, rng: torch.Generator, *, scale: float = 0.12, shift: float = 0.06) -> Tensor:
    """Pictures (n, 3, h, w) in [-1, 1], each made smaller by up to `scale` and shifted by that share of the side."""
    count = len(pictures)
    zoom = 1 / (1 - scale * torch.rand(count, generator=rng))
    moves = shift * 2 * (2 * torch.rand(count, 2, generator=rng) - 1)
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = maps[:, 1, 1] = zoom
    maps[:, :, 2] = moves
    places = F.affine_grid(maps, [count, 3, SIDE_PX, SIDE_PX], align_corners=False)
    return 1 - F.grid_sample(1 - pictures, places, padding_mode="zeros", align_corners=False)


def content(name: str) -> str:
    return f"a picture of a {name}"


def in_style(content: str, word: str, *, first: bool = False) -> str:
    return f"in {word} style {content}" if first else f"{content} in {word} style"


def captions(name: str, designer: str) -> list[str]:
    """Ten captions of a picture, some of them equal: the thing and the designer in both orders, or one of the two."""
    thing, word = content(name), style_word(designer)
    both = [in_style(thing, word), in_style(thing, word, first=True)]
    return [thing] * 3 + [in_style("a picture", word)] + both * 3


def everyday(world: World) -> tuple[str, ...]:
    """160 captions that a new concept should not change: a random sample of the base's, and the empty one."""
    rng = random.Random("everyday emoji")
    drawn = ((rng.choice(world.known[:FAMILIAR]), rng.choice(TRAINED)) for _ in range(EVERYDAY - 1))
    return ("", *(rng.choice(captions(*pair)) for pair in drawn))
