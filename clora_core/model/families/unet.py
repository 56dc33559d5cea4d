"""Stable Diffusion's UNets, with diffusers' module names or the original (ldm) ones.

A projection's path is its diffusers name. The original names of ComfyUI and single files are translated.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..projections import Place, Projection, Role

DIFFUSERS_PATH = re.compile(
    r"(?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_(?P<role>[kv])"
)
LDM_PATH = re.compile(
    r"(?P<block>(?:(?:input|output)_blocks\.\d+|middle_block)\.1)\.(?P<rest>transformer_blocks\.\d+\.attn2\.to_[kv])"
)
SPELLED = re.compile(
    r"(?P<block>(?:(?:down|up)_blocks[._]\d|mid_block)[._]attentions[._]\d"
    r"|(?:input|output)_blocks[._]\d+[._]1|middle_block[._]1)"
    r"[._]transformer_blocks[._](?P<depth>\d+)[._]attn2[._](?:processor\.)?to_(?P<role>[kv])"
)


@dataclass(frozen=True)
class UNet:
    """ldm_keys: whether ordinary LoRA files use the original block names, as kohya's trainer does for SDXL."""

    ldm_keys: bool = False

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
        """See `Structure`. The network can be the `diffusion_model` of another one."""
        names = {name.removeprefix("diffusion_model."): name for name in modules}
        translate = _ldm_blocks(names)
        places: dict[Projection, Place] = {}
        for path, name in names.items():
            if (ldm := LDM_PATH.fullmatch(path)) and ldm["block"] in translate:
                path = f"{translate[ldm['block']]}.{ldm['rest']}"
            if role := self.role(path):
                rows, columns = shape(name)
                places[Projection(path, role, (rows, columns))] = Place(name)
        return places

    def role(self, path: str) -> Role | None:
        match = DIFFUSERS_PATH.fullmatch(path)
        return match and ("key" if match["role"] == "k" else "value")

    def lora_key(self, path: str) -> str:
        """As kohya's trainer writes it."""
        return "lora_unet_" + (ldm_path(path) if self.ldm_keys else path).replace(".", "_")

    def spelled(self, name: str) -> tuple[str, str] | None:
        match = SPELLED.match(name)
        if not match:
            return None
        block = re.sub(r"[._](?=\d|attentions)", ".", match["block"])
        block = ORIGINAL_BLOCKS.get(block, block)
        return f"{block}.transformer_blocks.{match['depth']}.attn2.to_{match['role']}", name[match.end() :]


def ldm_path(path: str, *, layers_per_block: int = 2) -> str:
    """The original name of a diffusers path: down_blocks.1.attentions.0.… → input_blocks.4.1.…"""
    block, _, rest = path.partition(".transformer_blocks.")
    match block.split("."):
        case ["down_blocks", level, "attentions", index]:
            block = f"input_blocks.{1 + int(level) * (layers_per_block + 1) + int(index)}.1"
        case ["up_blocks", level, "attentions", index]:
            block = f"output_blocks.{int(level) * (layers_per_block + 1) + int(index)}.1"
        case _:
            block = "middle_block.1"
    return f"{block}.transformer_blocks.{rest}"


BLOCKS = (
    *(f"down_blocks.{level}.attentions.{index}" for level in range(4) for index in range(2)),
    *(f"up_blocks.{level}.attentions.{index}" for level in range(4) for index in range(3)),
    "mid_block.attentions.0",
)
ORIGINAL_BLOCKS = {ldm_path(block).removesuffix(".transformer_blocks."): block for block in BLOCKS}


def _ldm_blocks(names: Iterable[str]) -> dict[str, str]:
    """Original name of each block with attention → its diffusers name, derived from where the resolution changes."""
    names = list(names)
    blocks = {"middle_block.1": "mid_block.attentions.0"}
    for side, ours, resampler in (
        ("input_blocks", "down_blocks", r"input_blocks\.(\d+)\.0\.op"),
        ("output_blocks", "up_blocks", r"output_blocks\.(\d+)\.[12]\.conv"),
    ):
        numbers = sorted({int(match[1]) for name in names if (match := re.match(side + r"\.(\d+)\.", name))})
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
