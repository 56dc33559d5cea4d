"""Transformers: numbered blocks of the same modules, where the maps of an attention may be stored in one weight."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..numbers import Numbers
from ..projections import Place, Projection, Role

# As SDXL's; float16 overflows in some of these networks. Not measured: no model of real size was run. Their text
# encoders take 7 to 15 GiB, except Anima's.
NUMBERS = Numbers(precision="bf16", token="frozen")

# Paths in diffusers: of text that attends beside the picture, and of separate cross-attention.
ADDED: Mapping[Role, str] = {
    "key": "transformer_blocks.{}.attn.add_k_proj",
    "value": "transformer_blocks.{}.attn.add_v_proj",
}
SEPARATE: Mapping[Role, str] = {"key": "transformer_blocks.{}.attn2.to_k", "value": "transformer_blocks.{}.attn2.to_v"}


@dataclass(frozen=True)
class Layout:
    """One layout of the weights. modules: the module's name, with {} for the number of its block → what its rows hold.

    The roles of a weight have the same number of rows each, one after another.
    """

    modules: dict[str, tuple[Role, ...]]


@dataclass(frozen=True)
class Blocks:
    """paths: role → the path of a block's projection, with {} for its number. layouts: where they can be.

    lora: the key stem of a projection in ordinary LoRA files, with {} for its path. diffusers: role → the path in
    diffusers; empty if it loads no LoRA of such a model.
    """

    paths: Mapping[Role, str]
    layouts: tuple[Layout, ...]
    lora: str = "diffusion_model.{}"
    diffusers: Mapping[Role, str] = field(default_factory=dict)

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
        """See `Structure`."""
        modules = list(modules)
        for layout in self.layouts:
            places: dict[Projection, Place] = {}
            for template, roles in layout.modules.items():
                pattern = _numbered(template)
                for name in modules:
                    if match := pattern.fullmatch(name):
                        rows, columns = shape(name)
                        part = rows // len(roles)
                        for index, role in enumerate(roles):
                            if role in self.paths:
                                path = self.paths[role].format(match[1])
                                places[Projection(path, role, (part, columns))] = Place(name, index * part)
            if places:
                return places
        return {}

    def role(self, path: str) -> Role | None:
        return next((role for role, template in self.paths.items() if _numbered(template).fullmatch(path)), None)

    def lora_key(self, path: str) -> str:
        return self.lora.format(path)

    def diffusers_keys(self, path: str) -> tuple[str, ...]:
        for role, template in self.diffusers.items():
            if match := _numbered(self.paths[role]).fullmatch(path):
                stem = f"transformer.{template.format(match[1])}"
                return f"{stem}.lora_B.weight", f"{stem}.lora_A.weight"
        return ()

    def spelled(self, name: str) -> tuple[str, str] | None:
        for template in self.paths.values():
            pattern = re.sub(r"\\\.|_", "[._]", re.escape(template)).replace(r"\{\}", r"(\d+)")
            if match := re.match(pattern, name):
                return template.format(match[1]), name[match.end() :]
        return None


def _numbered(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
