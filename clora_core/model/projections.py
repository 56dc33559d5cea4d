"""Which frozen linear maps can carry a delta, and what each ecosystem calls them.

C-LoRA changes the key and value projections of a UNet's cross-attention and nothing else (arXiv:2304.06027, section 4).
A projection is named here as diffusers names it; models with the original (ldm) names, such as ComfyUI's, are
translated on the way in, so that a museum made in either is the same museum.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..errors import BaseModelError

Role = Literal["key", "value"]

DIFFUSERS_PATH = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_(?P<role>[kv])"
)
LDM_PATH = re.compile(
    r"(?P<block>(?:(?:input|output)_blocks\.\d+|middle_block)\.1)\.(?P<rest>transformer_blocks\.\d+\.attn2\.to_[kv])"
)


@dataclass(frozen=True, order=True)
class Projection:
    """One frozen linear map: its diffusers path inside the UNet, its role, and its shape (out, in)."""

    path: str
    role: Role
    shape: tuple[int, int]

    def __hash__(self) -> int:
        return hash(self.path)  # a large museum looks projections up many thousand times


@dataclass(frozen=True)
class Architecture:
    """A family of models: recognised by the width of its text states, spoken to by its encoders' names."""

    name: str
    text_width: int
    encoders: Mapping[str, int]  # ComfyUI's name of each text encoder's embeddings → their width
    ldm_keys: bool = False  # whether its ordinary LoRA files use the original block names (kohya's habit for SDXL)


ARCHITECTURES = (
    Architecture("starter", 128, {"clip_l": 128}),
    Architecture("sd15", 768, {"clip_l": 768}),
    Architecture("sd2", 1024, {"clip_h": 1024}),
    Architecture("sdxl", 2048, {"clip_l": 768, "clip_g": 1280}, ldm_keys=True),
)


def architecture_of(projections: Iterable[Projection]) -> Architecture:
    """The architecture whose text width all these projections share."""
    widths = {projection.shape[1] for projection in projections}
    for architecture in ARCHITECTURES:
        if widths == {architecture.text_width}:
            return architecture
    known = ", ".join(f"{architecture.name} ({architecture.text_width})" for architecture in ARCHITECTURES)
    raise BaseModelError(
        f"The cross-attention of this model reads text states of width {sorted(widths)}. Known architectures: {known}. "
        "See README, 'Add an architecture'."
    )


def architecture_named(name: str) -> Architecture:
    """The architecture of that name."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise BaseModelError(f"There is no architecture '{name}'. Known: {known}.")


def find_projections(unet: nn.Module) -> dict[Projection, nn.Module]:
    """The cross-attention key and value projections of a UNet with diffusers or ldm (ComfyUI) names, in order of path.

    Raises BaseModelError where there are none, as in models of joint attention (Flux, SD3).
    """
    translate = _ldm_blocks(unet)
    found: dict[Projection, nn.Module] = {}
    for name, module in unet.named_modules():
        path = name.removeprefix("diffusion_model.")
        if ldm := LDM_PATH.fullmatch(path):
            path = f"{translate[ldm['block']]}.{ldm['rest']}"
        if match := DIFFUSERS_PATH.fullmatch(path):
            rows, columns = module.get_parameter("weight").shape
            found[Projection(path, "key" if match["role"] == "k" else "value", (rows, columns))] = module
    if not found:
        known = ", ".join(architecture.name for architecture in ARCHITECTURES)
        raise BaseModelError(
            f"No cross-attention key/value projections found in {type(unet).__name__}. C-LoRA needs a UNet whose text "
            "enters by a cross-attention of its own; models of joint attention, such as Flux and SD3, have none. "
            f"Known architectures: {known}."
        )
    return dict(sorted(found.items()))


def lora_key(projection: Projection, architecture: Architecture) -> str:
    """The stem under which ordinary LoRA files keep this projection, as kohya's trainer writes it."""
    path = ldm_path(projection.path) if architecture.ldm_keys else projection.path
    return "lora_unet_" + path.replace(".", "_")


def ldm_path(path: str, *, layers_per_block: int = 2) -> str:
    """A diffusers path by its original name: down_blocks.1.attentions.0.… → input_blocks.4.1.…"""
    block, _, rest = path.partition(".transformer_blocks.")
    match block.split("."):
        case ["down_blocks", level, "attentions", index]:
            block = f"input_blocks.{1 + int(level) * (layers_per_block + 1) + int(index)}.1"
        case ["up_blocks", level, "attentions", index]:
            block = f"output_blocks.{int(level) * (layers_per_block + 1) + int(index)}.1"
        case _:
            block = "middle_block.1"
    return f"{block}.transformer_blocks.{rest}"


def _ldm_blocks(unet: nn.Module) -> dict[str, str]:
    """Original name of each block with attention → its diffusers name, read off where the resolution changes."""
    names = [name.removeprefix("diffusion_model.") for name, _ in unet.named_modules()]
    blocks = {"middle_block.1": "mid_block.attentions.0"}
    for side, ours, resampler in (
        ("input_blocks", "down_blocks", r"input_blocks\.(\d+)\.0\.op"),
        ("output_blocks", "up_blocks", r"output_blocks\.(\d+)\.[12]\.conv"),
    ):
        numbers = sorted({int(match[1]) for name in names if (match := re.fullmatch(side + r"\.(\d+)", name))})
        changes = {int(match[1]) for name in names if (match := re.fullmatch(resampler, name))}
        level = index = 0
        for number in numbers:
            if side == "input_blocks" and (number == 0 or number in changes):
                level, index = level + (number != 0), 0
                continue
            blocks[f"{side}.{number}.1"] = f"{ours}.{level}.attentions.{index}"
            index += 1
            if side == "output_blocks" and number in changes:
                level, index = level + 1, 0
    return blocks
