"""The memory that a training step needs, shown before it starts, and room for a small network."""

import comfy.model_management
import torch

from ...clora_core.learning import fitting
from ...clora_core.learning.fitting import Device
from ...clora_core.method.recipe import Recipe
from ...clora_core.model.precision import DTYPES, Precision
from ...clora_core.museum.museum import Museum
from .base import HostBase
from .model import slots_of, stored_dtype, unet_of

ROOM_BYTES = 2 * 2**30  # a vision transformer and its activations


def device_with_room() -> str:
    """The device that ComfyUI computes on, after it has made room there for a network that it does not manage."""
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(ROOM_BYTES, device)
    return str(device)


def device_of(base: HostBase) -> Device:
    """What the device that trains offers."""
    return Device(comfy.model_management.get_total_memory(base.device), _fastest(base.device))


def needed_bytes(base: HostBase, recipe: Recipe, earlier: Museum, height: int, width: int) -> int:
    """Approximate memory of a step with pictures of that size in pixels, with the models that the device holds."""
    return step_bytes(base, recipe, earlier, height, width) + _models_bytes(base, recipe)


def step_bytes(base: HostBase, recipe: Recipe, earlier: Museum, height: int, width: int) -> int:
    """The same without the models."""
    model, _ = base.sources
    *_, rows, columns = base.latent_shape(height, width)
    computed, places = DTYPES[recipe.precision], slots_of(model)
    copied = fitting.copied_bytes(
        unet_of(model), computed.itemsize, lambda layer: stored_dtype(layer.weight) != computed
    )
    return fitting.learning_bytes(
        base.family,
        places,
        recipe,
        earlier,
        latent_pixels=rows * columns,
        copied_bytes=copied,
        read_bytes=computed.itemsize,
    )


def memory_note(base: HostBase, recipe: Recipe, earlier: Museum, height: int, width: int) -> str:
    """The estimate as a text, with the size of the models and of the device's memory."""
    needed, models = step_bytes(base, recipe, earlier, height, width), _models_bytes(base, recipe)
    total = comfy.model_management.get_total_memory(base.device)
    text = f"a step of {recipe.batch_size} pictures of {width}×{height} takes about {_size_text(needed)}"
    text += f" on top of the models' {_size_text(models)}; the device has {_size_text(total)}"
    too_much = needed + models > total
    return text + " · to save memory, use checkpointing, bf16 (C-LoRA Recipe) or a smaller batch" * too_much


def _fastest(device: torch.device) -> Precision:
    """The precision in which training is fastest and still learns. On CPUs and Macs, 16 bits are no faster."""
    if device.type in ("cpu", "mps"):
        return "fp32"
    if comfy.model_management.should_use_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" and comfy.model_management.should_use_fp16(device) else "fp32"


def _models_bytes(base: HostBase, recipe: Recipe) -> int:
    model, clip = base.sources
    used = (model, clip.patcher) if recipe.token == "learned" else (model,)
    patchers = [patcher for patcher in used if patcher.load_device == base.device]
    return sum(patcher.model_size() for patcher in patchers)


def _size_text(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
