"""Damaged checkpoints of any kind either work or are refused with a clear error when they are opened."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clora_core.errors import BaseModelError
from clora_core.over_diffusers.base import DiffusersBase, open_base
from tests.saved_models import prediction_of, saved_model

Tensors = dict[str, Tensor]
SEEDS = 12
DTYPES = (torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn, torch.complex64)
VALUES = (None, -1, 0, 1, 3, 2**20, 10**9, 2**63, 1.5, float("nan"), "x", "", True, [], [0, 0], {}, {"a": 1}, [None])
UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
SCHEDULER, WORDS, LETTERS = (
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
)
CONFIGS = (UNET, VAE, TEXT, SCHEDULER, WORDS, LETTERS)
LAYER = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def copied(family: str, place: Path, changed: str) -> Path:
    """The path of a file in a copy of the family's folder, to be spoiled; all others are links."""
    folder = Path(shutil.copytree(saved_model(family).folder, place / "copy", copy_function=os.link))
    path = folder / changed
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def asked(base: DiffusersBase) -> None:
    """Everything once, in two steps of the schedule and with another prompt than the trial at opening."""
    with torch.no_grad():
        prediction = prediction_of(base, base.encode_prompts(["a photo", ""], []))
        latents = base.encode_pictures(torch.zeros(1, 3, 64, 64))
        pictures = base.decode_latents(latents)
    assert all(answer.isfinite().all() for answer in (prediction, latents, pictures))
    assert base.resolution_px > 0 and base.word_vectors("a")


def works(path: Path, **options: Any) -> bool:
    """Whether it opens, and then works; False where it is refused."""
    try:
        base = open_base(path, **options)
    except BaseModelError as error:
        assert str(error) and len(str(error)) < 1500
        return False
    asked(base)
    return True


FILES: dict[str, Callable[[Tensors], object]] = {
    "numbers that are no floats": lambda t: t.update({FIRST: t[FIRST].to(torch.int8)}),
    "complex numbers": lambda t: t.update({LAYER: t[LAYER].to(torch.complex64)}),
    "a number that is not finite": lambda t: t.update({LAYER: t[LAYER] * float("nan")}),
    "an axis less": lambda t: t.update({FIRST: t[FIRST].flatten()}),
    "no axis": lambda t: t.update({key: torch.zeros(()) for key in t if key.endswith("attn2.to_k.weight")}),
    "no rows": lambda t: t.update({FIRST: t[FIRST][:0]}),
    "a block that is counted beyond reason": lambda t: t.update({LAYER.replace(".1.", f".{10**9}."): t[LAYER]}),
    "a level that is counted beyond reason": lambda t: t.update(
        {f"first_stage_model.encoder.down.{10**9}.x": t[LAYER]}
    ),
    "a number that is no digit": lambda t: t.update({LAYER.replace(".1.", ".²."): t[LAYER]}),
    "no tensors": lambda t: t.clear(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_odd_shapes_is_refused(name: str, tmp_path: Path) -> None:
    tensors = saved_model("sd15").tensors()
    FILES[name](tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
    assert not works(tmp_path / "odd.safetensors", tokenizer=saved_model("sd15").tokenizer)


FOLDERS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a tokenizer of another make": (LETTERS, lambda c: c.update(normalizer="x")),
    "a tokenizer that reads nothing": (WORDS, lambda c: c.update(model_max_length=1)),
    "a length of letters": (WORDS, lambda c: c.update(model_max_length="x")),
    "a negative length": (WORDS, lambda c: c.update(model_max_length=-1)),
    "a rate that is no number": (TEXT, lambda c: c.update(attention_dropout=False)),
    "layers without end": (TEXT, lambda c: c.update(num_hidden_layers=10**9)),
    "blocks without end": (UNET, lambda c: c.update(layers_per_block=[2, 2, 10**9, 2])),
    "a width beyond the file": (TEXT, lambda c: c.update(intermediate_size=2**24)),
    "a width of nothing": (UNET, lambda c: c.update(block_out_channels=[])),
    "a size of letters": (UNET, lambda c: c.update(sample_size="x")),
    "a size below nothing": (UNET, lambda c: c.update(sample_size=-64)),
    "no scale": (VAE, lambda c: c.update(scaling_factor=None)),
    "a scale of zero": (VAE, lambda c: c.update(scaling_factor=0)),
    "timesteps without end": (SCHEDULER, lambda c: c.update(num_train_timesteps=10**9)),
    "no timestep": (SCHEDULER, lambda c: c.update(num_train_timesteps=0)),
    "noise of one number": (SCHEDULER, lambda c: c.update(trained_betas=0.1)),
    "more noise than there is": (SCHEDULER, lambda c: c.update(trained_betas=[0.1, 1.5, 0.1])),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_a_wrong_configuration_is_refused(name: str, tmp_path: Path) -> None:
    file, change = FOLDERS[name]
    path = copied("sd15", tmp_path, file)
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert not works(path.parent.parent)


def test_two_text_encoders_must_read_prompts_of_one_length(tmp_path: Path) -> None:
    path = copied("sdxl", tmp_path, WORDS)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 5}))
    assert not works(path.parent.parent)


@pytest.mark.parametrize("error", [MemoryError, torch.cuda.OutOfMemoryError, KeyboardInterrupt])
def test_out_of_memory_and_interrupts_are_not_turned_into_model_errors(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(*inputs: object) -> None:
        raise error

    monkeypatch.setattr(DiffusersBase, "try_out", raising)
    with pytest.raises(error):
        open_base(saved_model("sd15").folder)


def spoiled_tensors(tensors: Tensors, rng: random.Random) -> None:
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    axis = rng.randrange(max(1, tensor.ndim))
    match rng.choice(("drop", "rename", "repeat", "turn", "more axes", "less axes", "resize", "retype")):
        case "rename":
            tensors[name.replace(*rng.choice((("0", "9"), ("1", "0"), ("weight", "bias"), (".", ""))))] = tensor
        case "repeat":
            tensors |= {name: tensor, f"{name}.0": tensor.clone()}
        case "turn":
            tensors[name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor[..., None].contiguous()
        case "more axes":
            tensors[name] = tensor[None]
        case "less axes":
            tensors[name] = tensor.flatten()
        case "resize":
            count = tensor.shape[axis]
            rows = torch.arange(rng.choice((0, 1, count // 2, 2 * count, count + 1))) % count
            tensors[name] = tensor.index_select(axis, rows)
        case "retype":
            tensors[name] = tensor.to(rng.choice(DTYPES))


def spoiled_config(path: Path, rng: random.Random) -> None:
    config = json.loads(path.read_text())
    key = rng.choice(sorted(config))
    match rng.choice(("drop", "value", "value", "whole", "text")):
        case "drop":
            del config[key]
        case "value":
            config[key] = rng.choice(VALUES)
        case "whole":
            config = rng.choice(VALUES)
        case "text":
            text = path.read_text()
            path.write_text(rng.choice((text[: rng.randrange(len(text))], "", "[" * 100_000)))
            return
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_damaged_folder_works_or_is_refused(seed: int, tmp_path: Path) -> None:
    rng, saved = random.Random(seed), saved_model("sd15")
    if seed % 3:
        path = copied("sd15", tmp_path, rng.choice(CONFIGS))
        spoiled_config(path, rng)
        works(path.parent.parent)
        return
    path = tmp_path / "odd.safetensors"
    tensors = saved.tensors()
    spoiled_tensors(tensors, rng)
    save_file(tensors, path)
    if seed % 2:
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    works(path, tokenizer=saved.tokenizer)
