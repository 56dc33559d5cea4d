"""Models of SD1.5's, SD2's and SDXL's own blocks with few channels, and what ComfyUI's LoRA loader does to them."""

from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .checkpoints import LAYOUTS
from .models import CLIP, FAMILIES, Models, fill, small_vae


def layout_models(family: str) -> Models:
    """All of the family's blocks, with 32 channels at every resolution and no more than two transformers in each."""
    (kind, _), (_, unet) = FAMILIES[family], LAYOUTS[family]
    depths = {key: [min(depth, 2) for depth in unet[key]] for key in ("transformer_depth", "transformer_depth_output")}
    depths["transformer_depth_middle"] = min(unet["transformer_depth_middle"], 2)
    config = kind({**unet, **depths, "model_channels": 32, "channel_mult": [1] * len(unet["num_res_blocks"])})
    config.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model({}, "", device=offload)
    fill(model.diffusion_model, seed=1)
    options = {f"clip_{name}_model_config": dict(CLIP) for name in ("l", "g", "h")}
    clip = comfy.sd.CLIP(config.clip_target(), model_options=options)
    fill(clip.cond_stage_model, seed=2)
    return ModelPatcher(model, comfy.model_management.get_torch_device(), offload), clip, small_vae()


def stock_view(model: ModelPatcher, path: Path) -> ModelPatcher:
    """The model with a LoRA file, as ComfyUI's Load LoRA puts it on."""
    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def moved(model: ModelPatcher) -> dict[str, Tensor]:
    """A weight's name → what the model's patches add to it, by ComfyUI's own computation."""
    weights = model.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, torch.zeros_like(weights[key]), key)
        for key, patches in model.patches.items()
    }


def assert_same_move(one: ModelPatcher, other: ModelPatcher) -> None:
    ours, theirs = moved(one), moved(other)
    assert set(ours) == set(theirs) and ours
    for key, change in ours.items():
        torch.testing.assert_close(change, theirs[key], rtol=1e-4, atol=1e-6)
