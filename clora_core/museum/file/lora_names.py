"""The names of tensors in other programs' LoRA files, and which of these tensors a museum can hold.

<path> is a projection's path in diffusers:

    kohya-ss/sd-scripts   lora_unet_<path>.lora_up.weight, .lora_down.weight, .alpha, with _ for . in the path; SDXL's
                          paths have the original blocks (input_blocks_4_1). SimpleTuner uses the prefix lycoris_
    diffusers             unet.<path>.lora_B.weight, .lora_A.weight; earlier .lora.up.weight, .lora.down.weight, and
                          first unet.….attn2.processor.to_k_lora.up.weight, .down.weight. Of a transformer:
                          transformer.<path>.…
    peft                  base_model.model.<path>.lora_B.weight, .lora_A.weight; with the adapter's name before
                          .weight in what `state_dict` gives, .lora_B.default.weight
    ComfyUI               diffusion_model.<original path>.lora_up.weight, .lora_down.weight, .alpha
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import MuseumError
from ...model import families
from ...model.families.unet import in_diffusers_blocks
from ...texts import counted

PREFIX = re.compile(r"^(?:lora_unet_|lycoris_|(?:unet\.)?base_model\.model\.|unet\.|transformer\.|diffusion_model\.)")
PARTS = {
    ".lora_up.weight": "up",
    ".lora_B.weight": "up",
    ".lora.up.weight": "up",
    "_lora.up.weight": "up",
    ".lora_down.weight": "down",
    ".lora_A.weight": "down",
    ".lora.down.weight": "down",
    "_lora.down.weight": "down",
    ".alpha": "alpha",
}
ADAPTER = re.compile(r"\.lora_[AB]\.(?P<name>[^.]+)\.weight$")  # peft's name of the adapter
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoder")


@dataclass(frozen=True)
class LoraNames:
    """factors: the path of each projection with a plain LoRA → "up", "down" and optionally "alpha" → the tensor's name.

    bundled: word (an embedding bundled for A1111) → key of its vectors → the tensor's name. others: all other names.
    """

    factors: Mapping[str, Mapping[str, str]]
    bundled: Mapping[str, Mapping[str, str]]
    others: Sequence[str]


def lora_names(names: Iterable[str]) -> LoraNames:
    """Sort the names of a LoRA file in any of the forms above.

    Raises MuseumError for two names of one tensor, and for several adapters of peft.
    """
    originals = dict(zip(in_diffusers_blocks(given := list(names)), given, strict=True))
    if len(adapters := sorted({match["name"] for match in map(ADAPTER.search, given) if match})) > 1:
        raise MuseumError(f"It holds several adapters: {', '.join(adapters):.200}. Save one of them alone.")
    changed: dict[str, dict[str, str]] = {}
    bundled: dict[str, dict[str, str]] = {}
    others: list[str] = []
    encoders = "|".join({re.escape(encoder) for family in families.FAMILIES for encoder in family.encoders})
    bundle = re.compile(rf"bundle_emb\.(?P<word>.+)\.(?P<key>string_to_param\.\*|{encoders})")
    for renamed, name in originals.items():
        if projection := _projection(renamed):
            path, ending = projection
            parts = changed.setdefault(path, {})
            ending = ADAPTER.sub(lambda match: match[0].replace(f".{match['name']}.", "."), ending)
            part = PARTS.get(ending, ending)
            if part in parts:
                raise MuseumError(
                    f"'{parts[part]:.100}' and '{name:.100}' are the same tensor. Does the file hold two LoRAs?"
                )
            parts[part] = name
        elif match := bundle.fullmatch(name):
            bundled.setdefault(match["word"], {})[match["key"]] = name
        else:
            others.append(name)
    plain = {path: parts for path, parts in changed.items() if {"up", "down"} <= set(parts) <= {"up", "down", "alpha"}}
    others += [name for path, parts in changed.items() if path not in plain for name in parts.values()]
    return LoraNames(plain, bundled, others)


def other_tensors(names: Sequence[str]) -> tuple[str, ...]:
    """A description of these tensors for error messages: "216 tensors of text encoders ('lora_te_…', …)"."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name.endswith(tuple(PARTS)), name)):  # unusual names first
        if TEXT_ENCODER.match(name):
            kind = "of text encoders"
        elif _projection(name):
            kind = "of key and value projections that are not a plain LoRA (a LoHa, LoKr or DoRA, or incomplete)"
        else:
            kind = "of other layers"
        kinds.setdefault(kind, []).append(name)
    return tuple(
        f"{counted(len(members), 'tensor')} {kind} ('{members[0]:.100}'{', …' * (len(members) > 1)})"
        for kind, members in kinds.items()
    )


def _projection(name: str) -> tuple[str, str] | None:
    """The path of the projection that the tensor belongs to, and the rest of its name."""
    return families.spelled(PREFIX.sub("", name))
