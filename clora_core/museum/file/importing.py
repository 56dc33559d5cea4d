"""What others made, as an exhibit: ordinary LoRAs, and the embeddings of textual inversion.

    ΔW = alpha / rank · up @ down

`lora_names.py` has the names of the factors. alpha stands beside them; diffusers keeps it in the file's metadata, peft
in adapter_config.json. Where there is none it is the rank, as every loader takes it.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import MuseumError
from ...method.recipe import Recipe
from ...model import families
from ...model.base import Fingerprint
from ...model.concept import TEMPLATES, ConceptToken, Kind, check_mentioned
from ...model.low_rank import LowRank
from ...model.projections import Projection
from ..museum import Exhibit, Museum
from .files import check_finite, errors_about, opened
from .header import header_of
from .json_values import mapping, number, parsed
from .lora_names import lora_names, told
from .names import SUFFIX

DIFFUSERS_CONFIG = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_CONFIG_LIMIT = 2**20  # bytes
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class OrdinaryLora:
    """What a museum can hold of a LoRA file.

    deltas: with alpha / rank multiplied into `up`. bundled: the words that stand in the file for A1111, each with its
    vectors. left_out: what else the file changes, for people. steps: how long it was trained; 1 if it does not say.
    """

    deltas: Mapping[Projection, LowRank] = field(default_factory=dict)
    bundled: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    steps: int = 1


def read_lora(path: Path | str, *, skip_others: bool = False) -> OrdinaryLora:
    """Read a LoRA file, or the folder that peft's `save_pretrained` wrote.

    Raises MuseumError where it changes more than key and value projections, or these in another form (LoHa, LoKr,
    DoRA), unless skip_others.
    """
    path = Path(path)
    path = path / PEFT_FILE if path.is_dir() else path
    with errors_about(path):
        _check_suffix(path)
        with opened(path) as file:
            metadata = file.metadata() or {}
            if "clora.format" in metadata:
                raise MuseumError("It is a museum, no ordinary LoRA. Merge it: edit MUSEUM --merge FILE.")
            names = lora_names(file.keys())
            left_out = told(names.others)
            if not names.factors:
                raise MuseumError(
                    "It holds no plain LoRA of a cross-attention's key or value projection (attn2.to_k, attn2.to_v), "
                    f"and a museum holds nothing else. It holds {' and '.join(left_out) or 'nothing'}."
                )
            if left_out and not skip_others:
                raise MuseumError(
                    f"It also holds {' and '.join(left_out)}, for which a museum has no place. Leave them out with "
                    "--skip-others; the pictures will then differ from those of the whole LoRA."
                )
            peft = any(name.startswith("base_model.") for parts in names.factors.values() for name in parts.values())
            scaling = _scaling(path, metadata, peft=peft)
            deltas = dict(_delta(file, where, parts, scaling) for where, parts in sorted(names.factors.items()))
            families.family_of(deltas)
            bundled = {
                word: _vectors({key: file.get_tensor(name) for key, name in keys.items()})
                for word, keys in names.bundled.items()
            }
            steps = metadata.get("ss_steps", "")
            return OrdinaryLora(deltas, bundled, left_out, int(steps) if re.fullmatch(r"[1-9]\d{,8}", steps) else 1)


def read_embedding(path: Path | str) -> dict[str, Tensor]:
    """A word's vectors, text encoder → (1, words, width) float32.

    The file is kohya's or A1111's (`emb_params`), diffusers' (its tensor has the word's name), or one for SDXL's two
    encoders (`clip_l` and `clip_g`).
    """
    path = Path(path)
    with errors_about(path):
        _check_suffix(path)
        with opened(path) as file:
            names = list(file.keys())
            if len(names) > 2:
                raise MuseumError(
                    f"It holds {len(names)} tensors, such as '{names[0]:.80}'; an embedding is one or two."
                )
            return _vectors({name: file.get_tensor(name) for name in names})


def imported(
    base: Fingerprint,
    word: str,
    vectors: Mapping[str, Tensor],
    lora: OrdinaryLora | None = None,
    *,
    known: Collection[Projection],
    kind: Kind = "object",
    template: str = "",
    facts: Mapping[str, object] | None = None,
) -> Exhibit:
    """What was read as an exhibit over that base. known: the projections that the base is known to have."""
    lora = lora or OrdinaryLora()
    if lora.deltas and (found := families.family_of(lora.deltas).name) != base.family:
        raise MuseumError(f"This is a LoRA for {found}, but the museum was made over '{base}'.")
    if strangers := [projection for projection in lora.deltas if projection not in known]:
        stranger = strangers[0]
        raise MuseumError(
            f"The LoRA changes '{stranger.path}' of shape {stranger.shape}, which '{base}' is not known to "
            "have. Was it made for another model? If not, name the museum's base, so that it can be looked up there."
        )
    rank = max((delta.rank for delta in lora.deltas.values()), default=1)
    template = template or TEMPLATES[kind]
    check_mentioned(template, word)
    prompt = template.replace("{word}", word)
    recipe = Recipe("imported", rank=rank, steps=lora.steps)
    exhibit = Exhibit(ConceptToken(word, vectors), lora.deltas, recipe, kind, prompt, facts or {})
    header_of(Museum(base, (exhibit,)))
    return exhibit


@dataclass(frozen=True)
class _Scaling:
    """alpha as peft's LoraConfig says it: for all, or None for the rank; and for paths that end in a pattern."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def of(self, path: str, rank: int) -> float:
        """What up @ down of this path is multiplied by."""
        alpha = next((own for end, own in self.patterns.items() if f".{path}".endswith(f".{end}")), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _scaling(path: Path, metadata: Mapping[str, str], *, peft: bool) -> _Scaling:
    """What peft's LoraConfig says of the scale, in the file's metadata or in the file beside it."""
    beside = path.with_name(PEFT_CONFIG)
    if DIFFUSERS_CONFIG in metadata:
        source = metadata[DIFFUSERS_CONFIG]
    elif not peft:
        return _Scaling()
    elif beside.is_file() and beside.stat().st_size <= PEFT_CONFIG_LIMIT:
        source = beside.read_text(encoding="utf-8")
    else:
        raise MuseumError(f"It was written by peft, whose scale stands in {PEFT_CONFIG}. Put that file beside it.")
    values = mapping(parsed(source, "Its LoraConfig"), "Its LoraConfig")
    config = {name.removeprefix("unet."): value for name, value in values.items()}
    if config.get("lora_alpha") is None:
        return _Scaling()
    patterns = mapping(config.get("alpha_pattern") or {}, "Its alpha_pattern")
    if odd := [end for end in patterns if not re.fullmatch(r"\^?[\w.]+", end)]:
        raise MuseumError(f"Its alpha_pattern has an expression that is no plain path: '{odd[0]:.80}'.")
    alphas = {end.removeprefix("^"): number(alpha, f"Its alpha of '{end}'") for end, alpha in patterns.items()}
    return _Scaling(number(config["lora_alpha"], "Its lora_alpha"), alphas, config.get("use_rslora") is True)


def _delta(file: safe_open, path: str, parts: Mapping[str, str], scaling: _Scaling) -> tuple[Projection, LowRank]:
    tensors = {part: _numbers(name, file.get_tensor(name), whole=part == "alpha") for part, name in parts.items()}
    up, down = tensors["up"], tensors["down"]
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or 0 in (*up.shape, *down.shape):
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise MuseumError(f"'{parts['up']}' and its other factor have shapes {shapes}, not (out, rank) and (rank, in).")
    rank = down.shape[0]
    if "alpha" not in tensors:
        scale = scaling.of(path, rank)
    elif tensors["alpha"].numel() == 1:
        scale = tensors["alpha"].item() / rank
    else:
        raise MuseumError(f"'{parts['alpha']}' has shape {tuple(tensors['alpha'].shape)}; it must be one number.")
    role = "key" if path.endswith("to_k") else "value"
    return Projection(path, role, (up.shape[0], down.shape[1])), LowRank(up, down).scaled(scale)


def _vectors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An embedding's tensors as text encoder → (1, words, width): by their names, or a single one by its width."""
    rows = {name: _numbers(name, tensor) for name, tensor in tensors.items()}
    rows = {name: tensor[None] if tensor.ndim == 1 else tensor for name, tensor in rows.items()}
    if any(tensor.ndim != 2 or 0 in tensor.shape for tensor in rows.values()):
        shapes = ", ".join(f"'{name:.80}' {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise MuseumError(f"It holds {shapes}; the shape of an embedding is (words, width).")
    for family in families.FAMILIES:
        named = rows
        if len(rows) == len(family.encoders) == 1:
            named = dict(zip(family.encoders, rows.values(), strict=True))
        if {name: tensor.shape[1] for name, tensor in named.items()} == dict(family.encoders):
            return {name: tensor[None].contiguous() for name, tensor in named.items()}
    found = ", ".join(f"'{name:.80}' of width {tensor.shape[1]}" for name, tensor in rows.items()) or "nothing"
    known = "; ".join(f"{family.name} {dict(family.encoders)}" for family in families.FAMILIES)
    raise MuseumError(f"It holds {found}, which is an embedding for none of the known families: {known}.")


def _numbers(name: str, tensor: Tensor, *, whole: bool = False) -> Tensor:
    """float32. whole: whether whole numbers will do, as which some trainers write alpha."""
    if not tensor.is_floating_point() and not (whole and tensor.dtype in WHOLE):
        raise MuseumError(f"'{name:.100}' has dtype {tensor.dtype}; floating point numbers were expected.")
    tensor = tensor.to(torch.float32, copy=True)
    check_finite({name: tensor})
    return tensor


def _check_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise MuseumError(f"Only {SUFFIX} files are read, since files of other kinds can hold programs. Convert it.")
