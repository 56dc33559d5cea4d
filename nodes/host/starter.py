"""The built-in small model in ComfyUI's own classes, with the weights that ship with this pack.

The weights have the names of diffusers and transformers (`clora_core/starter/model.py`). Renamed, the same tensors fit
ComfyUI's UNet, CLIP and TAESD.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...clora_core.starter.layout import LATENT_CHANNELS, TEXT_CONFIG, TOKENS, WEIGHTS
from ...clora_core.starter.tokenizer import build_tokenizer
from .base import VAE
from .model import ModelPatcher
from .words import CLIP

WIDTH: int = TEXT_CONFIG["hidden_size"]


def load_starter() -> tuple[ModelPatcher, CLIP, VAE]:
    """The starter model as ComfyUI's MODEL, CLIP and VAE, all float32."""
    return load_model(), load_clip(), load_vae()


def load_model() -> ModelPatcher:
    offload = comfy.model_management.unet_offload_device()
    config = StarterConfig(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=offload)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    _fill(model.diffusion_model, {names[name]: tensor for name, tensor in _tensors("unet").items()})
    return ModelPatcher(model.eval(), comfy.model_management.get_torch_device(), offload)


def load_clip(**options: Any) -> CLIP:
    """options: what ComfyUI passes when it needs a paged model as a whole."""
    tokenizer = partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=StarterWords)
    encoder = partial(comfy.sd1_clip.SD1ClipModel, clip_model=StarterEncoder)
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    folders = folder_paths.get_folder_paths("embeddings")
    clip = CLIP(target, embedding_directory=folders, model_options={"dtype": torch.float32}, **options)
    clip.patcher.cached_patcher_init = (_text_patcher, ())
    tensors = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in _tensors("text_encoder").items()
    }
    projection = {"text_projection.weight": torch.eye(WIDTH)}  # ComfyUI's class needs one; the UNet does not use it
    _fill(clip.cond_stage_model.clip_l.transformer, tensors | projection)
    return clip


def load_vae() -> VAE:
    tensors = {_vae_name(name): tensor for name, tensor in _tensors("vae").items()}
    scale = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return VAE(sd=tensors | scale, dtype=torch.float32)


class StarterLatents(comfy.latent_formats.LatentFormat):
    """Latents with 32 channels, also for an Empty Latent Image."""

    latent_channels = LATENT_CHANNELS
    scale_factor = 1.0


class StarterConfig(comfy.supported_models_base.BASE):
    """Stable Diffusion's schedule with v prediction."""

    unet_config: Mapping[str, Any] = {}
    unet_extra_config: Mapping[str, Any] = {"num_heads": 4, "num_head_channels": -1}
    latent_format = StarterLatents
    memory_usage_factor = 1.0

    def model_type(self, state_dict: Mapping[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        """ComfyUI takes a UNet with more than four input channels for an inpainting model; this one is not."""
        return False


UNET: Mapping[str, Any] = {
    "image_size": 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": -2,  # no middle block
    "context_dim": WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}


class WordLevel:
    """The starter's tokenizer, for ComfyUI's class, which opens tokenizers by a path; it is not used."""

    @staticmethod
    def from_pretrained(path: str, **options: Any) -> Any:
        return build_tokenizer()


class StarterWords(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's tokenizer over the starter's words: 32 tokens per prompt, padded with the end token."""

    def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: Mapping[str, Any] = {}) -> None:
        super().__init__(
            max_length=TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=WIDTH,
            tokenizer_class=WordLevel,
            tokenizer_data=dict(tokenizer_data),
        )


class StarterEncoder(comfy.sd1_clip.SDClipModel):
    """A two-layer CLIP text encoder with the starter's vocabulary. Some hosts pass more `options`."""

    def __init__(
        self, device: Any = "cpu", dtype: torch.dtype | None = None, model_options: Any = None, **options: Any
    ) -> None:
        start, end = TEXT_CONFIG["bos_token_id"], TEXT_CONFIG["eos_token_id"]
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=TOKENS,
            textmodel_json_config=dict(TEXT_CONFIG),
            special_tokens={"start": start, "end": end, "pad": end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        table = self.operations.Embedding(TEXT_CONFIG["vocab_size"], WIDTH, device=device, dtype=dtype)
        self.transformer.set_input_embeddings(table.requires_grad_(False))


def _text_patcher(**options: Any) -> ModelPatcher:
    return load_clip(**options).patcher


def _vae_name(name: str) -> str:
    """TAESD counts the clamp at the start of the decoder as a layer; diffusers' AutoencoderTiny does not."""
    side, _, layer, rest = name.split(".", 3)
    return f"taesd_{side}.{int(layer) + (side == 'decoder')}.{rest}"


def _tensors(part: str) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(WEIGHTS / f"{part}.safetensors").items()}


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load exactly these tensors: ComfyUI leaves missing ones uninitialized."""
    module.load_state_dict(dict(tensors), strict=True)
