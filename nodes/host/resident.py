"""Weights that stay where they are: newer ComfyUIs page them in and out of the device while a model runs.

A backward pass needs the weights that the forward pass saw, and would find others in their place. Such a model has a
delegate, loaded from the same file in the ordinary way, which ComfyUI itself uses for what paging cannot do.
"""

import comfy.model_patcher
import comfy.sd
from torch import nn

from ...clora_core.errors import BaseModelError
from .model import run_dtype, stored_dtype

ModelPatcher = comfy.model_patcher.ModelPatcher
CLIP = comfy.sd.CLIP


def resident_model(model: ModelPatcher) -> ModelPatcher:
    """The model, or its delegate. Raises BaseModelError for a paged model that ComfyUI cannot load a second time."""
    if not getattr(model, "is_dynamic", bool)():
        return model
    try:
        return _as_run(model.get_non_dynamic_delegate())
    except RuntimeError as error:
        raise BaseModelError(
            f"{type(model.model).__name__} cannot be held in memory as a whole to learn over it ({error}). Load it by "
            "one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def resident_clip(clip: CLIP) -> CLIP:
    """The CLIP, or one over its model's delegate that understands the same words."""
    patcher = resident_model(clip.patcher)
    if patcher is clip.patcher:
        return clip
    clone = clip.clone()
    clone.patcher, clone.cond_stage_model = patcher, patcher.model
    return clone


def _as_run(delegate: ModelPatcher) -> ModelPatcher:
    """With every weight in the dtype that ComfyUI would page it in as; the delegate's linears keep their file's."""
    for module in delegate.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            dtype = run_dtype(module, name, weight)
            if dtype != stored_dtype(weight):
                setattr(module, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return delegate
