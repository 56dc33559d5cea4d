"""A model whose linear layers hold packed bytes and unpack them whenever they run, as models in GGUF files do.

Such a weight reports the shape that it stands for, but the dtype of its bytes; small ones and biases are numbers of
the same class. ComfyUI is told a state dict without contents, to estimate memory.
"""

from typing import Any

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import FAMILIES, UNET, ModelPatcher, fill

BLOCK = 32  # numbers that share a scale


class Packed(Tensor):
    """Rows of blocks: a float16 scale and 32 int8 multiples of it; or, if `stands_for` is None, plain numbers."""

    stands_for: torch.Size | None = None

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.stands_for or self.size()

    def detach(self) -> "Packed":
        return self

    def to(self, *args: Any, **options: Any) -> "Packed":
        new = super().to(*args, **options)
        new.stands_for = self.stands_for
        return new

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        if self.stands_for is None:
            return Tensor.to(self, dtype).as_subclass(Tensor)
        blocks = self.as_subclass(Tensor).view(-1, BLOCK + 2)
        scales, multiples = blocks[:, :2].contiguous().view(torch.float16), blocks[:, 2:].view(torch.int8)
        return (scales.to(dtype) * multiples).view(self.stands_for)


def packed(weight: Tensor) -> Packed:
    """A matrix as blocks; small ones and vectors as they are."""
    if weight.dim() != 2 or len(weight) <= BLOCK:
        return weight.as_subclass(Packed)
    blocks = weight.reshape(-1, BLOCK)
    scales = (blocks.abs().amax(1, keepdim=True) / 127).half()
    multiples = (blocks / scales.float()).round().clamp(-127, 127).to(torch.int8)
    rows = torch.cat([scales.view(torch.uint8), multiples.view(torch.uint8)], 1).view(len(weight), -1)
    new = rows.as_subclass(Packed)
    new.stands_for = weight.shape
    return new


class PackedOps(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            bias = None if self.bias is None else self.bias.unpacked(x.dtype)
            return F.linear(x, self.weight.unpacked(x.dtype), bias)

        def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
            for name, value in self.named_parameters():
                destination[f"{prefix}{name}"] = torch.zeros_like(value, device="meta")
            destination[f"{prefix}temp.weight"] = torch.empty(self.weight.shape, device="meta")


def packed_and_plain() -> tuple[ModelPatcher, ModelPatcher]:
    """A packed model, and one of the numbers that its weights stand for."""
    patchers = []
    for operations in (PackedOps, None):
        config = FAMILIES["sd15"][0](dict(UNET))
        config.custom_operations = operations
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=comfy.model_management.unet_offload_device())
        fill(model.diffusion_model, seed=1)
        for module in model.diffusion_model.modules():
            if isinstance(module, nn.Linear):
                for name, weight in module.named_parameters(recurse=False):
                    content = packed(weight.data)
                    content = content if operations else content.unpacked(torch.float32)
                    setattr(module, name, nn.Parameter(content, requires_grad=False))
        devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patchers.append(ModelPatcher(model, *devices))
    return patchers[0], patchers[1]
