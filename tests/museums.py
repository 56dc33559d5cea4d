"""Small museums of random numbers for the tests of files."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import torch

from clora_core.method.recipe import Recipe, recipe_named
from clora_core.model.base import Fingerprint
from clora_core.model.concept import ConceptToken
from clora_core.model.families import family_named
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.museum import Exhibit, Museum

JUNK = (None, True, -1, 0, 1.5, 10**40, "", "x", "<my-cat>", "\0", [], {}, [[]], {"name": {}}, ["x"] * 50)

BLOCKS = (
    "down_blocks.0.attentions.0",
    "down_blocks.1.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.1.attentions.2",
)


def projections(architecture: str, rows: int = 32) -> list[Projection]:
    width = family_named(architecture).text_width
    return [
        Projection(f"{block}.transformer_blocks.0.attn2.to_{role[0]}", role, (rows, width))
        for block in BLOCKS
        for role in ("key", "value")
    ]


def exhibit(
    word: str,
    on: list[Projection],
    *,
    seed: int,
    ranks: tuple[int, ...] = (4,),
    words: int = 1,
    layers: int = 1,
    architecture: str = "sd15",
    recipe: Recipe | None = None,
    **more: object,
) -> Exhibit:
    """An exhibit of random numbers; its ranks go round over the projections."""
    rng = torch.Generator().manual_seed(seed)
    deltas = {}
    for index, projection in enumerate(on):
        rank = ranks[index % len(ranks)]
        up, down = (
            torch.randn(shape, generator=rng) for shape in ((projection.shape[0], rank), (rank, projection.shape[1]))
        )
        deltas[projection] = LowRank(up, down)
    vectors = {
        encoder: torch.randn(layers, words, width, generator=rng)
        for encoder, width in family_named(architecture).encoders.items()
    }
    return Exhibit(ConceptToken(word, vectors), deltas, recipe or recipe_named("c-lora", rank=4), **more)  # type: ignore[arg-type]


def museum(architecture: str = "sd15") -> Museum:
    """Four exhibits: everywhere with one rank, on some projections, with ranks of their own, and without a delta."""
    on = projections(architecture)
    own = {"architecture": architecture}
    facts = {"date": "2024-05-06", "pictures": 5, "loss": 0.25, "notes": ["a", {"b": None, "c": True}]}
    exhibits = (
        exhibit("<my-cat>", on, seed=1, prompt="a photo of <my-cat>", facts=facts, thumbnail=b"\xff\xd8thumb", **own),
        exhibit("<ink>", on[2:5], seed=2, ranks=(3,), words=2, kind="style", **own),
        exhibit("<bär>", on, seed=3, ranks=(2, 5, 1), recipe=recipe_named("sequential", seed=7), **own),
        exhibit("lonely", [], seed=4, words=3, prompt='with "quotes", ünïcode and 木', **own),
    )
    return Museum(Fingerprint(architecture, "0123abcd" * 8), exhibits)


def assert_same(one: Museum, other: Museum) -> None:
    """Equal facts and bit-equal tensors."""
    assert one.base == other.base
    assert one.words == other.words
    for ours, theirs in zip(one.exhibits, other.exhibits, strict=True):
        assert (ours.recipe, ours.kind, ours.prompt) == (theirs.recipe, theirs.kind, theirs.prompt)
        assert dict(ours.facts) == dict(theirs.facts)
        assert (ours.thumbnail, ours.strength) == (theirs.thumbnail, theirs.strength)
        assert set(ours.deltas) == set(theirs.deltas)
        for projection, delta in ours.deltas.items():
            assert torch.equal(delta.up, theirs.deltas[projection].up)
            assert torch.equal(delta.down, theirs.deltas[projection].down)
        assert set(ours.token.vectors) == set(theirs.token.vectors)
        for encoder, vectors in ours.token.vectors.items():
            assert torch.equal(vectors, theirs.token.vectors[encoder])
            assert vectors.dtype == theirs.token.vectors[encoder].dtype == torch.float32


def taken_apart(path: Path) -> tuple[dict, bytes]:
    """A safetensors file by its definition: header and data."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def unsealed(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata as other programs may leave it: without the hashes, so that any content goes with it."""
    return {name: value for name, value in metadata.items() if name not in ("clora.hash", "sshs_model_hash")}


def put_together(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_inner(path: Path, change: Callable[[dict], object]) -> None:
    """Change the JSON of 'clora.museum' in place, or put what `change` returns."""
    header, data = taken_apart(path)
    inner = json.loads(header["__metadata__"]["clora.museum"])
    returned = change(inner)
    header["__metadata__"]["clora.museum"] = returned if isinstance(returned, str) else json.dumps(inner)
    put_together(path, header, data)


def replace_somewhere(tree: object, rng: random.Random) -> None:
    """Replace, remove or rename one value anywhere in a JSON tree."""
    places = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        for key in keys:
            places.append((node, key))
            pending.append(node[key])
    node, key = rng.choice(places)
    match rng.randrange(3):
        case 0:
            node[key] = rng.choice(JUNK)
        case 1:
            del node[key]
        case _ if isinstance(node, dict):
            node[rng.choice(("x", "clora.museum", "word"))] = node.pop(key)
        case _:
            node.insert(key, rng.choice(JUNK))
