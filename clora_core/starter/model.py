"""The starter model: Stable Diffusion's structure at a hundredth of its size, with weights in this folder.

64×64 pictures ↔ 8×8×32 latents by an `AutoencoderTiny` (TAESD's layout); a `UNet2DConditionModel` with
cross-attention at both of its levels and no middle block; a two-layer `CLIPTextModel` over a word-level vocabulary.
Group norms have 32 groups, so the same tensors fit ComfyUI's own UNet, CLIP and VAE classes.
"""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from .layout import LATENT_CHANNELS, TEXT_CONFIG, WEIGHTS
from .tokenizer import build_tokenizer


@dataclass(frozen=True)
class Starter:
    """The parts of the model, in diffusers and transformers."""

    unet: UNet2DConditionModel
    vae: AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
    scheduler: DDIMScheduler


def load_starter_parts() -> Starter:
    """The starter model with its shipped weights, frozen, in evaluation mode."""
    starter = build_starter()
    for name in ("unet", "vae", "text_encoder"):
        module: nn.Module = getattr(starter, name)
        tensors = load_file(WEIGHTS / f"{name}.safetensors")
        module.load_state_dict({key: value.float() for key, value in tensors.items()})
        module.eval().requires_grad_(False)
    return starter


def build_starter() -> Starter:
    """The starter model with untrained weights."""
    return Starter(build_unet(), build_vae(), build_text_encoder(), build_tokenizer(), build_scheduler())


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=32,
    )


def build_vae() -> AutoencoderTiny:
    return AutoencoderTiny(latent_channels=LATENT_CHANNELS, scaling_factor=1.0)


def build_text_encoder(words: int = TEXT_CONFIG["vocab_size"]) -> CLIPTextModel:
    """words: the size of the vocabulary."""
    config: dict[str, Any] = TEXT_CONFIG | {"vocab_size": words}
    return CLIPTextModel(CLIPTextConfig(**config))


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
