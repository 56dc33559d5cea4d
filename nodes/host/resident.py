"""Weights that stay in place: newer versions of ComfyUI page them in and out of the device while a model runs.

A backward pass needs the same weights as the forward pass, but would find others in their place. A paged model has a
delegate, loaded from the same file in the ordinary way, which ComfyUI itself uses where paging does not work.
"""

import comfy.sd
from torch import nn

from ...clora_core.errors import BaseModelError
from .model import ModelPatcher, run_dtype, stored_dtype

CLIP = comfy.sd.CLIP


def resident_model(model: ModelPatcher) -> ModelPatcher:
    """The model, or its delegate. Raises BaseModelError for a paged model that ComfyUI cannot load a second time."""
    if not getattr(model, "is_dynamic", bool)():
        return model
    try:
        return _in_run_dtypes(model.get_non_dynamic_delegate())
    except RuntimeError as error:
        raise BaseModelError(
            f"{type(model.model).__name__} cannot be kept in memory as a whole for training ({error}). Load it with "
            "one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def resident_clip(clip: CLIP) -> CLIP:
    """The CLIP, or a clone over its model's delegate that knows the same words."""
    patcher = resident_model(clip.patcher)
    if patcher is clip.patcher:
        return clip
    clone = clip.clone()
    clone.patcher, clone.cond_stage_model = patcher, patcher.model
    return clone


def _in_run_dtypes(delegate: ModelPatcher) -> ModelPatcher:
    """Convert every weight to the dtype that ComfyUI pages it in as; the delegate's linears have their file's."""
    for module in delegate.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            dtype = run_dtype(module, name, weight)
            if dtype != stored_dtype(weight):
                setattr(module, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return delegate
