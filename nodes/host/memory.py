"""The memory that a training step needs, shown before it starts, and room for a small network."""

import comfy.model_management
import torch
from torch import nn

from ...clora_core.method.recipe import Recipe
from .base import DTYPES, HostBase
from .model import stored_dtype, unet_of

ROOM_BYTES = 2 * 2**30  # a vision transformer and its activations


def device_with_room() -> str:
    """The device that ComfyUI computes on, after it has made room there for a network that it does not manage."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(ROOM_BYTES, device)
    return str(device)


def step_bytes(base: HostBase, recipe: Recipe, height: int, width: int) -> int:
    """Approximate memory of a step with pictures of that size in pixels, without the models themselves."""
    *_, rows, columns = base.latent_shape(height, width)
    activations = base.family.kept_bytes * rows * columns * recipe.batch_size
    trained = sum(recipe.rank * sum(projection.shape) * 4 for projection in base.slots)
    dense = sum(4 * projection.shape[0] * projection.shape[1] for projection in base.slots)
    wide = 2 if recipe.precision == "fp32" else 1
    share = base.family.checkpointed if recipe.checkpointing else 1
    copies = share * _copied_bytes(unet_of(base.model), DTYPES[recipe.precision])
    # parameters, gradients and AdamW's two moments; the earlier museum as one dense matrix per projection
    return round(activations * wide * share + copies) + 4 * trained + dense


def memory_note(base: HostBase, recipe: Recipe, height: int, width: int) -> str:
    """The estimate as a text, with the size of the models and of the device's memory."""
    needed = step_bytes(base, recipe, height, width)
    patchers = [patcher for patcher in (base.model, base.clip.patcher) if patcher.load_device == base.device]
    models = sum(patcher.model_size() for patcher in patchers)
    total = comfy.model_management.get_total_memory(base.device)
    text = f"a step of {recipe.batch_size} pictures of {width}×{height} takes about {_size_text(needed)}"
    text += f" on top of the models' {_size_text(models)}; the device has {_size_text(total)}"
    too_much = needed + models > total
    return text + " · to save memory, use checkpointing, bf16 (C-LoRA Recipe) or a smaller batch" * too_much


def _copied_bytes(network: nn.Module, computed: torch.dtype) -> int:
    """Bytes of the weights in another dtype: the backward pass keeps a converted copy of each."""
    weights = (module.weight for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return sum(weight.numel() * computed.itemsize for weight in weights if stored_dtype(weight) != computed)


def _size_text(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
