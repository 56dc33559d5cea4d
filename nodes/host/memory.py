"""How much memory a training step takes, said before it starts."""

import comfy.model_management
import torch
from torch import nn

from ...clora_core.method.recipe import Recipe
from .base import DTYPES, HostBase
from .model import stored_dtype, unet_of


def step_bytes(base: HostBase, recipe: Recipe, height: int, width: int) -> int:
    """About what a step with pictures of that size in pixels takes, besides the models themselves."""
    _, rows, columns = base.latent_shape(height, width)
    kept = base.family.kept_bytes * rows * columns * recipe.batch_size
    trained = sum(recipe.rank * sum(projection.shape) * 4 for projection in base.modules)
    dense = sum(4 * projection.shape[0] * projection.shape[1] for projection in base.modules)
    wide = 2 if recipe.precision == "fp32" else 1
    share = base.family.checkpointed if recipe.checkpointing else 1
    copied = share * _copied(unet_of(base.model), DTYPES[recipe.precision])
    # parameters, gradients and AdamW's two moments; the museum so far, as one dense matrix per projection
    return round(kept * wide * share + copied) + 4 * trained + dense


def said(base: HostBase, recipe: Recipe, height: int, width: int) -> str:
    """The estimate, beside what the models take and what the device has, in words."""
    needed = step_bytes(base, recipe, height, width)
    loaded = [each for each in (base.model, base.clip.patcher) if each.load_device == base.device]
    models = sum(each.model_size() for each in loaded)
    there = comfy.model_management.get_total_memory(base.device)
    text = f"a step of {recipe.batch_size} pictures of {width}×{height} takes about {_named(needed)}"
    text += f" beside the models' {_named(models)}; the device has {_named(there)}"
    too_much = needed + models > there
    return text + " · checkpointing, bf16 (C-LoRA Recipe) or a smaller batch takes less" * too_much


def _copied(network: nn.Module, computed: torch.dtype) -> int:
    """Bytes of the weights that are stored in another dtype: a backward pass keeps a copy of each in this one."""
    weights = (module.weight for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    return sum(weight.numel() * computed.itemsize for weight in weights if stored_dtype(weight) != computed)


def _named(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
