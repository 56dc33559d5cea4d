"""Checkpoint files of SD1.5's, SD2's and SDXL's layout: their own blocks, names, text encoders and autoencoder.

ComfyUI recognizes a model by the shapes of its tensors: 320 channels at the highest resolution, the width of the text
states, and SDXL's numbers of transformer blocks. All of that is as published; only the deeper resolutions, with 320
channels instead of up to 1280, and the text encoders, of few layers, are not, unless asked for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from .models import SMALL_CLIPS, UNET, Models, fill

SD: Mapping[str, Any] = {
    **UNET,
    "model_channels": 320,
    "num_res_blocks": [2] * 4,
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
}
SDXL: Mapping[str, Any] = {
    **SD,
    "num_res_blocks": [2] * 3,
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
LAYOUTS = {
    "sd15": (comfy.supported_models.SD15, SD),
    "sd2": (comfy.supported_models.SD20, {**SD, "context_dim": 1024, "use_linear_in_transformer": True}),
    "sdxl": (comfy.supported_models.SDXL, SDXL),
}
AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def write_checkpoint(family: str, path: Path, widths: Sequence[int] | None = None) -> None:
    """A checkpoint of random float16 weights, by the names that ComfyUI itself saves it under.

    widths: the channels at each resolution, in multiples of 320. Without them, also the text encoders have few layers.
    """
    kind, unet = LAYOUTS[family]
    config = kind({**unet, "channel_mult": list(widths or [1] * len(unet["num_res_blocks"]))})
    config.set_inference_dtype(torch.float16, torch.float32)
    model = config.get_model({}, "", device=torch.device("cpu"))
    clip = comfy.sd.CLIP(config.clip_target(), model_options={} if widths else SMALL_CLIPS)
    vae = AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4).half()
    for seed, module in enumerate((model.diffusion_model, clip.cond_stage_model, vae)):
        fill(module, seed=seed)
    tensors = {
        **config.process_unet_state_dict_for_saving(model.diffusion_model.state_dict()),
        **config.process_clip_state_dict_for_saving(clip.get_sd()),
        **config.process_vae_state_dict_for_saving(vae.state_dict()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    comfy.utils.save_torch_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))


def open_checkpoint(path: Path) -> Models:
    """The parts of a checkpoint, as ComfyUI's own loader opens it."""
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(path))
    return model, clip, vae
