"""Bases with the shapes of real UNets and random weights, since the cost of a step does not depend on their values.

Text encoders and autoencoder are small stand-ins of the right widths: next to the UNet, they take hardly any time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..model.base import Schedule
from ..model.families import recognized
from ..over_diffusers.base import DiffusersBase
from ..over_diffusers.checkpoints import Parts
from ..over_diffusers.prompts import TextEncoder
from ..starter.layout import vocabulary
from ..starter.model import build_scheduler, build_tokenizer

UNETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"block_out_channels": (32, 64), "cross_attention_dim": 768, "attention_head_dim": 8}
    | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1}
    | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
}


def shaped_base(shape: str, device: torch.device, dtype: torch.dtype = torch.float32) -> DiffusersBase:
    """A base of the shape of Stable Diffusion 1.5 ("sd15", 860 M in its UNet) or XL ("sdxl", 2,568 M), or with the text
    encoder's width of SD 1.5 and a UNet of 2 M ("tiny")."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNETS[shape])
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),  # type: ignore[arg-type]
            down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
        )
        known, _ = recognized(unet)
        encoders = tuple(_encoder(name, width, known.penultimate) for name, width in known.encoders.items())
    schedule = Schedule(build_scheduler().alphas_cumprod.float(), "epsilon")
    return DiffusersBase(Parts(unet, vae, encoders, schedule), dtype=dtype, device=device)


def _encoder(name: str, width: int, penultimate: bool) -> TextEncoder:
    """A CLIP text encoder of one layer; of two for a family that reads the last but one."""
    config = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1 + penultimate,
        num_attention_heads=width // 64,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
    )
    kind = CLIPTextModelWithProjection if name == "clip_g" else CLIPTextModel
    return TextEncoder(name, kind(config), build_tokenizer(), 1, penultimate)
