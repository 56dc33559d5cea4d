"""Stable Diffusion's UNets, with diffusers' module names or the original (ldm) ones.

A projection's path is its diffusers name. The original names of ComfyUI and single files are translated. They number
the blocks through, so they depend on how many layers a block has: 2, but 1 in KOALA.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..projections import Place, Projection, Role
from .family import ordinary_keys

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
    """ldm_keys: whether ordinary LoRA files use the original block names, as kohya's trainer does for SDXL.

    layers_per_block: of the blocks on the way down; those on the way up have one more.
    """

    ldm_keys: bool = False
    layers_per_block: int = 2

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
        path = ldm_path(path, layers_per_block=self.layers_per_block) if self.ldm_keys else path
        return "lora_unet_" + path.replace(".", "_")

    def diffusers_keys(self, path: str) -> tuple[str, ...]:
        """The ordinary ones: diffusers translates them."""
        return ordinary_keys(self.lora_key(path))

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


def layers_per_block(paths: Iterable[str]) -> int:
    """1 if every block on the way down has one attention and every one on the way up two, as in KOALA; otherwise 2."""
    counts: dict[str, set[str]] = {}
    for path in paths:
        block, _, rest = path.partition(".attentions.")
        counts.setdefault(block, set()).add(rest.partition(".")[0])
    down = [found for block, found in counts.items() if block.startswith("down_blocks")]
    up = [found for block, found in counts.items() if block.startswith("up_blocks")]
    one = down and up and all(found == {"0"} for found in down) and all(found == {"0", "1"} for found in up)
    return 1 if one else 2


def in_diffusers_blocks(names: Sequence[str]) -> list[str]:
    """The names in a LoRA file, with diffusers' blocks if the original ones are numbered for one layer each."""
    numbers = {match[1] for match in map(re.compile(r"input_blocks[._](\d+)[._]1[._]").search, names) if match}
    if "3" not in numbers or numbers & {"1", "2", "4", "7", "8"}:
        return list(names)
    blocks = _original_blocks(1)

    def translated(match: re.Match[str]) -> str:
        return blocks.get(re.sub(r"_(?=\d)", ".", match[0]), match[0])

    return [re.sub(r"(?:in|out)put_blocks[._]\d+[._]1(?=[._])", translated, name) for name in names]


def _original_blocks(layers: int) -> dict[str, str]:
    """Original name of each block with attention, if blocks have this many layers → its diffusers name."""
    blocks = [
        *(f"down_blocks.{level}.attentions.{index}" for level in range(4) for index in range(layers)),
        *(f"up_blocks.{level}.attentions.{index}" for level in range(4) for index in range(layers + 1)),
        "mid_block.attentions.0",
    ]
    originals = (ldm_path(block, layers_per_block=layers).removesuffix(".transformer_blocks.") for block in blocks)
    return dict(zip(originals, blocks, strict=True))


ORIGINAL_BLOCKS = _original_blocks(2)


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
