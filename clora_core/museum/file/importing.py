"""Import ordinary LoRAs and textual inversion embeddings from other programs.

    ΔW = alpha / rank · up @ down

`lora_names.py` has the names of the factors. alpha is a tensor beside them; diffusers stores it in the file's metadata,
peft in adapter_config.json. Without alpha, every loader uses the rank.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
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
from ...texts import normal
from ..museum import Exhibit, Museum
from .files import check_finite, errors_about, opened
from .header import header_of
from .json_values import json_value, mapping, number
from .lora_names import lora_names, other_tensors
from .names import SUFFIX

DIFFUSERS_CONFIG = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_CONFIG_LIMIT = 2**20  # bytes
CONVERTING = (
    'To convert a file that you trust: python -c "import torch; from safetensors.torch import save_file; '
    "t = torch.load('{name}', weights_only=True); save_file({tensors}, '{stem}.safetensors')\""
)
ALL_TENSORS = "{k: v.detach().contiguous() for k, v in t.items()}"  # of a LoRA, or diffusers' learned_embeds.bin
A1111_TENSOR = "{'emb_params': t['string_to_param']['*'].detach()}"
OUTPUT = re.compile(r"(?:em[pb]_params|clip_\w+|t5\w*)_out")  # OneTrainer's vectors behind the text encoder
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class OrdinaryLora:
    """The parts of a LoRA file that a museum can hold.

    deltas: with alpha / rank multiplied into `up`. bundled: word (an embedding bundled for A1111) → its vectors.
    left_out: descriptions of all other tensors. steps: the training steps, 1 if the file does not say.
    """

    deltas: Mapping[Projection, LowRank] = field(default_factory=dict)
    bundled: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    steps: int = 1


def read_lora(path: Path | str, *, skip_others: bool = False) -> OrdinaryLora:
    """Read a LoRA file, or a folder written by peft's `save_pretrained`.

    Raises MuseumError if the file changes other layers than key and value projections, or is not a plain LoRA (LoHa,
    LoKr, DoRA), unless skip_others.
    """
    path = Path(path)
    path = path / PEFT_FILE if path.is_dir() else path
    with errors_about(path):
        _check_suffix(path)
        with opened(path) as file:
            metadata = file.metadata() or {}
            if "clora.format" in metadata:
                raise MuseumError("It is a museum, not an ordinary LoRA. Merge it: edit MUSEUM --merge FILE.")
            names = lora_names(file.keys())
            left_out = other_tensors(names.others)
            if not names.factors:
                raise MuseumError(
                    "It has no plain LoRA of a cross-attention's key or value projection (attn2.to_k, attn2.to_v), the "
                    f"only layers that a museum holds. It has {' and '.join(left_out) or 'no tensors'}."
                )
            if left_out and not skip_others:
                raise MuseumError(
                    f"It also has {' and '.join(left_out)}, which a museum cannot hold. Leave them out with "
                    "--skip-others; the pictures will then differ from those of the full LoRA."
                )
            peft = any(name.startswith("base_model.") for parts in names.factors.values() for name in parts.values())
            scaling = _scaling(path, metadata, peft=peft)
            deltas = dict(_delta(file, where, parts, scaling) for where, parts in sorted(names.factors.items()))
            families.families_with(deltas)
            if not any(delta.up.any() and delta.down.any() for delta in deltas.values()):
                raise MuseumError("It changes nothing: its factors or its alphas are all zero.")
            bundled = {
                word: _vectors([(key, file.get_tensor(name)) for key, name in keys.items()])
                for word, keys in names.bundled.items()
            }
            steps = metadata.get("ss_steps", "")
            return OrdinaryLora(deltas, bundled, left_out, int(steps) if re.fullmatch(r"[1-9]\d{,8}", steps) else 1)


def read_embedding(*paths: Path | str) -> dict[str, Tensor]:
    """A word's vectors, text encoder → (1, words, width) float32. paths: several where each encoder has its own file.

    The file is kohya's or A1111's (`emb_params`), diffusers' (its tensor has the word's name), or one for several
    encoders, by their names (`clip_l` and `clip_g` for SDXL). Vectors for the text encoders' output beside them are
    left out.
    """
    rows: list[tuple[str, Tensor]] = []
    for path in map(Path, paths):
        with errors_about(path):
            _check_suffix(path, A1111_TENSOR if path.suffix.lower() == ".pt" else ALL_TENSORS)
            with opened(path) as file:
                names = [name for name in file.keys() if not OUTPUT.fullmatch(name)]
                if not names and (outputs := list(file.keys())):
                    raise MuseumError(
                        f"It has only '{outputs[0]:.80}', an embedding of the text encoder's output, which prompts "
                        "cannot use. Train an ordinary embedding, of the encoder's input."
                    )
                if len(names) > (most := max(len(family.encoders) for family in families.FAMILIES)):
                    raise MuseumError(
                        f"It has {len(names)} tensors, such as '{names[0]:.80}'; an embedding has at most {most}."
                    )
                rows += [(name, file.get_tensor(name)) for name in names]
    with errors_about(Path(paths[0])):
        return _vectors(rows)


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
    """An exhibit for that base with these vectors and this LoRA. known: the base's known projections.

    Raises MuseumError for a LoRA of another family or with unknown projections.
    """
    lora, word = lora or OrdinaryLora(), normal(word)
    family = families.family_named(base.family)
    if lora.deltas and family not in (fitting := families.families_with(lora.deltas)):
        names = " or ".join(other.name for other in fitting)
        raise MuseumError(f"This is a LoRA for {names}, but the museum was made for '{base}'.")
    if unknown := [projection for projection in lora.deltas if projection not in known]:
        projection = unknown[0]
        raise MuseumError(
            f"The LoRA changes '{projection.path}' of shape {projection.shape}, which is not a known projection of "
            f"'{base}'. Was it made for another model? If not, give the museum's base to look the projection up."
        )
    by_width = {value.shape[-1]: value for value in vectors.values()}  # families share widths, but not names
    if sorted(by_width) == sorted(family.encoders.values()):
        vectors = {encoder: by_width[width] for encoder, width in family.encoders.items()}
    if missing := sorted(family.encoders.keys() - vectors.keys()):
        raise MuseumError(
            f"'{word}' has no vectors for the text encoder {missing[0]} of {base.family}. If there is a second "
            "embedding file for it, give both files."
        )
    rank = max((delta.rank for delta in lora.deltas.values()), default=1)
    template = normal(template) or TEMPLATES[kind]
    check_mentioned(template, word)
    prompt = template.replace("{word}", word)
    recipe = Recipe("imported", rank=rank, steps=lora.steps)
    exhibit = Exhibit(ConceptToken(word, vectors), lora.deltas, recipe, kind, prompt, facts or {})
    header_of(Museum(base, (exhibit,)))
    return exhibit


@dataclass(frozen=True)
class _Scaling:
    """alpha from peft's LoraConfig: for all paths (None: the rank), and for paths that end in a pattern."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def of(self, path: str, rank: int) -> float:
        """The factor on up @ down of this path."""
        matches = (alpha for end, alpha in self.patterns.items() if f".{path}".endswith(f".{end}"))
        alpha = next(matches, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _scaling(path: Path, metadata: Mapping[str, str], *, peft: bool) -> _Scaling:
    """The scale from peft's LoraConfig, which is in the file's metadata or in a file beside it."""
    beside = path.with_name(PEFT_CONFIG)
    if DIFFUSERS_CONFIG in metadata:
        source = metadata[DIFFUSERS_CONFIG]
    elif not peft:
        return _Scaling()
    elif beside.is_file() and beside.stat().st_size <= PEFT_CONFIG_LIMIT:
        source = beside.read_text(encoding="utf-8")
    else:
        raise MuseumError(f"It was written by peft, which stores its scale in {PEFT_CONFIG}. Put that file beside it.")
    values = mapping(json_value(source, "Its LoraConfig"), "Its LoraConfig")
    config = {name.removeprefix("unet."): value for name, value in values.items()}
    if config.get("lora_alpha") is None:
        return _Scaling()
    patterns = mapping(config.get("alpha_pattern") or {}, "Its alpha_pattern")
    if expressions := [end for end in patterns if not re.fullmatch(r"\^?[\w.]+", end)]:
        raise MuseumError(f"Its alpha_pattern has '{expressions[0]:.80}', which is not a plain path.")
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
    return Projection(path, families.role(path), (up.shape[0], down.shape[1])), LowRank(up, down).scaled(scale)


def _vectors(tensors: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """An embedding's tensors as text encoder → (1, words, width), matched by name, or else by their widths."""
    rows = [(name, _numbers(name, tensor)) for name, tensor in tensors]
    rows = [(name, tensor[None] if tensor.ndim == 1 else tensor) for name, tensor in rows]
    if any(tensor.ndim != 2 or 0 in tensor.shape for _, tensor in rows):
        shapes = ", ".join(f"'{name:.80}' {tuple(tensor.shape)}" for name, tensor in tensors)
        raise MuseumError(f"It has {shapes}; the shape of an embedding is (words, width).")
    known_names = {encoder for family in families.FAMILIES for encoder in family.encoders}
    for family in families.FAMILIES:
        named = dict(rows)
        if len(rows) == len(family.encoders) and not known_names & named.keys():
            encoder_of = {width: encoder for encoder, width in family.encoders.items()}
            named = {encoder_of.get(tensor.shape[1], name): tensor for name, tensor in rows}
        if {name: tensor.shape[1] for name, tensor in named.items()} == dict(family.encoders):
            return {name: tensor[None].contiguous() for name, tensor in named.items()}
    widths = ", ".join(f"'{name:.80}' of width {tensor.shape[1]}" for name, tensor in rows) or "no tensors"
    known = "; ".join(f"{family.name} {dict(family.encoders)}" for family in families.FAMILIES)
    raise MuseumError(f"It has {widths}, which matches no known family: {known}.")


def _numbers(name: str, tensor: Tensor, *, whole: bool = False) -> Tensor:
    """float32. whole: also accept integers, which some trainers write for alpha."""
    if not tensor.is_floating_point() and not (whole and tensor.dtype in WHOLE):
        raise MuseumError(f"'{name:.100}' has dtype {tensor.dtype}; expected floating point numbers.")
    tensor = tensor.to(torch.float32, copy=True)
    check_finite({name: tensor})
    return tensor


def _check_suffix(path: Path, tensors: str = ALL_TENSORS) -> None:
    """Raise MuseumError for other files than safetensors. tensors: how to get them from what torch loads as t."""
    if path.suffix.lower() != SUFFIX and path.is_file():
        advice = CONVERTING.replace("{name}", path.name).replace("{stem}", path.stem).replace("{tensors}", tensors)
        raise MuseumError(f"Only {SUFFIX} files are read, since other formats can run code. {advice}")
