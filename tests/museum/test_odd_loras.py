"""Corrupted LoRAs and embeddings: each becomes an exhibit that can be saved, or is refused."""

import json
import math
import random
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clora_core.errors import CLoRAError
from clora_core.model.base import Fingerprint
from clora_core.museum.file import OrdinaryLora, imported, load_museum, read_embedding, read_lora, save_museum
from clora_core.museum.museum import Museum

Tensors = dict[str, Tensor]
Metadata = dict[str, object]

FILES = 480
BASE = Fingerprint("sd15", "0" * 64)
PATHS = [
    f"{block}.transformer_blocks.0.attn2.to_" for block in ("down_blocks.0.attentions.0", "mid_block.attentions.0")
]
NAMES = {  # stem of a projection's names, and its endings
    "kohya": ("lora_unet_{flat}", (".lora_up.weight", ".lora_down.weight", ".alpha")),
    "lycoris": ("lycoris_{flat}", (".lora_up.weight", ".lora_down.weight", ".alpha")),
    "diffusers": ("unet.{path}", (".lora_B.weight", ".lora_A.weight", ".alpha")),
    "older": ("unet.{path}", ("_lora.up.weight", "_lora.down.weight", ".alpha")),
    "peft": ("base_model.model.{path}", (".lora_B.weight", ".lora_A.weight", ".alpha")),
    "comfyui": ("diffusion_model.{path}", (".lora_up.weight", ".lora_down.weight", ".alpha")),
}
DTYPES = {  # names in the header, with bytes per number; torch reads only some of them
    **{"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "U16": 2, "U32": 4, "U64": 8, "F16": 2, "BF16": 2},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F32": 4, "F64": 8, "C64": 8, "F4": 1, "X": 4},
}
NUMBERS = (math.nan, math.inf, -math.inf, 3e38, 1e-45, -0.0, 0.0, -1.0)
ODD_NAMES = ("", "x", "\0", "\ud800", "<img src=x>", "a" * 5000, "bundle_emb.<a>.clip_l", "bundle_emb.<a>.clip_g")
ODD_NAMES += ("lora_te_text_model.alpha", "clip_l", "clip_g", "emb_params", "__metadata", PATHS[0] + "k.diff")
VALUES = (None, True, -1, 0, 1.5, 1e308, 10**400, math.nan, "", "x", "\0\x1b", "\ud800", [], {}, [[]], "[" * 50_000)
CONFIGS = ("lora_alpha", "unet.lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "unet.use_rslora", "r")


def valid_lora(rng: random.Random, naming: str) -> tuple[Tensors, Metadata]:
    """A valid LoRA of four projections."""
    stem, (up, down, alpha) = NAMES[naming]
    tensors = {}
    for path in (head + role for head in PATHS for role in "kv"):
        name = stem.format(path=path, flat=path.replace(".", "_"))
        tensors |= {f"{name}{up}": torch.ones(8, 2), f"{name}{down}": torch.ones(2, 768)}
        if rng.random() < 0.5:
            tensors[f"{name}{alpha}"] = torch.tensor(2.0)
    if rng.random() < 0.3:
        tensors["bundle_emb.<cat>.string_to_param.*"] = torch.ones(2, 768)
    config = {"lora_alpha": 2, "alpha_pattern": {"attn2.to_k": 1}}
    return tensors, {"ss_steps": "10", "lora_adapter_metadata": json.dumps(config)}


def corrupt(tensors: Tensors, rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    match rng.choice(
        ("drop", "rename", "respell", "repeat", "turn", "flat", "point", "axis", "none", "resize", "number")
    ):
        case "rename":
            tensors[rng.choice(ODD_NAMES)] = tensor
        case "respell":
            tensors[
                name.replace(*rng.choice((("up", "down"), ("0", "9"), (".", "_"), ("to_k", "to_v"), ("0", "²"))))
            ] = tensor
        case "repeat":
            tensors |= {name: tensor, rng.choice(ODD_NAMES): tensor, name.replace("lora_up", "lora_B"): tensor}
        case "turn":
            tensors[name] = tensor.mT if tensor.ndim > 1 else tensor[None]
        case "flat":
            tensors[name] = tensor.flatten()
        case "point":
            tensors[name] = torch.tensor(1.0)
        case "axis":
            tensors[name] = tensor[None, ..., None]
        case "none":
            tensors[name] = tensor.flatten()[:0].reshape(rng.choice(((0,), (0, 2), (2, 0), (0, 768))))
        case "resize":
            tensors[name] = torch.ones(rng.choice(((), (1,), (2,), (8, 3), (3, 768), (8, 768), (1, 1), (2, 1280))))
        case "number":
            tensors[name] = torch.full(tensor.shape, rng.choice(NUMBERS))


def odd_metadata(metadata: Metadata, rng: random.Random) -> None:
    key = rng.choice(("ss_steps", "lora_adapter_metadata", "clora.format", "format", "", "\ud800"))
    metadata[key] = rng.choice((*VALUES, "9" * 5000, "-1", "1e3"))
    if rng.random() < 0.5:
        metadata["lora_adapter_metadata"] = odd_config(rng)


def odd_config(rng: random.Random) -> str:
    patterns = {rng.choice(("attn2", "to_k", "", "(a+)+$", "^mid_block", "\0")): rng.choice(VALUES)}
    return json.dumps({"lora_alpha": 1, rng.choice(CONFIGS): rng.choice((*VALUES, patterns))})


def write(path: Path, tensors: Tensors, metadata: Metadata, rng: random.Random) -> None:
    """A file with any metadata; in three of ten, a tensor has another dtype."""
    entries, data = {"__metadata__": metadata}, b""
    retyped = rng.choice(sorted(tensors)) if tensors and rng.random() < 0.3 else None
    for name, tensor in tensors.items():
        dtype, raw = "F32", tensor.contiguous().numpy().tobytes()
        if name == retyped:
            dtype = rng.choice(sorted(DTYPES))
            raw = rng.choice((bytes, rng.randbytes))(tensor.numel() * DTYPES[dtype])
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def works(lora: Path | None, embedding: Path | None, rng: random.Random, target: Path) -> bool:
    """Whether it becomes an exhibit of finite numbers that can be saved and loaded; False if it is refused."""
    try:
        read = read_lora(lora, skip_others=rng.random() < 0.7) if lora else OrdinaryLora()
        vectors = read_embedding(embedding) if embedding else {"clip_l": torch.ones(1, 1, 768)}
        if not embedding and read.bundled:
            vectors = next(iter(read.bundled.values()))
        word, facts = rng.choice(("<my-cat>", "<ink>")), {"imported": [file.name for file in (lora, embedding) if file]}
        exhibit = imported(BASE, word, vectors, read, known=tuple(read.deltas), facts=facts)
        save_museum(Museum(BASE, (exhibit,)), target, overwrite=True)
    except CLoRAError as error:
        assert len(str(error)) < 1000 and str(error).isprintable()
        assert "cannot be used (" not in str(error)  # the message for errors that no check has caught
        return False
    (saved,) = load_museum(target).exhibits
    assert all(factor.isfinite().all() for delta in saved.deltas.values() for factor in (delta.up, delta.down))
    return True


@pytest.mark.parametrize("naming", NAMES)
def test_a_corrupted_lora_works_or_is_refused(naming: str, tmp_path: Path) -> None:
    outcomes = []
    for seed in range(FILES // len(NAMES)):
        rng = random.Random(f"{naming} {seed}")
        tensors, metadata = valid_lora(rng, naming)
        for _ in range(rng.randrange(3)):
            if tensors:
                corrupt(tensors, rng)
        if rng.random() < 0.3:
            other, _ = valid_lora(rng, rng.choice(list(NAMES)))
            tensors |= dict(rng.sample(sorted(other.items()), 3))
        if rng.random() < 0.4:
            odd_metadata(metadata, rng)
        if rng.random() < 0.5:
            metadata.pop("lora_adapter_metadata", None)
        (tmp_path / "adapter_config.json").write_text(odd_config(rng))
        write(tmp_path / "adapter_model.safetensors", tensors, metadata, rng)
        path = tmp_path if rng.random() < 0.3 else tmp_path / "adapter_model.safetensors"
        outcomes.append(works(path, None, rng, tmp_path / "out.safetensors"))
    assert any(outcomes) and not all(outcomes)


def test_a_corrupted_embedding_works_or_is_refused(tmp_path: Path) -> None:
    outcomes = []
    for seed in range(FILES // len(NAMES)):
        rng = random.Random(seed)
        tensors: Tensors = {rng.choice(("emb_params", "clip_l", "<cat>", *ODD_NAMES)): torch.ones(2, 768)}
        for _ in range(rng.randrange(3)):
            if tensors:
                corrupt(tensors, rng)
        metadata: Metadata = {}
        odd_metadata(metadata, rng) if rng.random() < 0.3 else None
        write(tmp_path / "a.safetensors", tensors, metadata, rng)
        outcomes.append(works(None, tmp_path / "a.safetensors", rng, tmp_path / "out.safetensors"))
    assert any(outcomes) and not all(outcomes)
