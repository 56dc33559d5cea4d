"""Museums over the starter model for the panel to show: numbers that nobody learned, pictures that are drawn."""

import random
from pathlib import Path

import torch

from clora_core.method.recipe import RECIPES
from clora_core.model.base import Fingerprint
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.file import save_museum
from clora_core.museum.museum import Exhibit, Museum
from clora_core.pictures import thumbnail

SMALL, LARGE = "three.museum.safetensors", "thousand.museum.safetensors"
LOADED = "three-concepts.museum.safetensors"  # by example workflows, after another of them has been run
PROJECTION = Projection("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "key", (64, 128))


def save_museums(folder: Path) -> None:
    """Museums of three exhibits, and one of a thousand."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SMALL, LOADED):
        save_museum(_museum(["<ada>", "<bo>", "<cleo>"]), folder / name)
    save_museum(_museum([f"<w{number:04}>" for number in range(1000)]), folder / LARGE)


def _museum(words: list[str]) -> Museum:
    rng = random.Random(0)
    return Museum(Fingerprint("starter", "0" * 64), tuple(_exhibit(word, rng) for word in words))


def _exhibit(word: str, rng: random.Random) -> Exhibit:
    token = ConceptToken(word, {"clip_l": torch.zeros(1, 1, 128)})
    color = torch.tensor([rng.uniform(-1, 1) for _ in range(3)])
    picture = color[:, None, None].expand(3, 64, 64)
    facts = {"pictures": 12, "date": "2026-01-02T03:04:05+00:00"}
    deltas = {PROJECTION: LowRank(torch.zeros(64, 1), torch.zeros(1, 128))}
    return Exhibit(token, deltas, RECIPES["c-lora"], "object", f"a photo of {word}", facts, thumbnail(picture))
