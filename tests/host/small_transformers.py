"""Small transformers in ComfyUI's own classes: the real structures, text widths and tokenizers, random weights."""

import dataclasses
import functools
import io
import sys
from collections.abc import Mapping
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.flux
import pytest
import sentencepiece
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .models import DIFFERENT_ROWS, Models, fill, made_at_once, small_vae

WIDTH, HEADS = 128, 2
FLUX = {
    **{"in_channels": 16, "out_channels": 16, "context_in_dim": 4096, "hidden_size": WIDTH, "mlp_ratio": 2.0},
    **{"num_heads": HEADS, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 24, 24], "theta": 10000},
    **{"patch_size": 2, "qkv_bias": True},
}
if any(each.name == "txt_ids_dims" for each in dataclasses.fields(comfy.ldm.flux.model.FluxParams)):  # newer hosts
    FLUX |= {"txt_ids_dims": []}
COSMOS = {
    **{"image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128},
    **{"in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1},
    **{"model_channels": WIDTH, "num_blocks": 2, "num_heads": HEADS, "concat_padding_mask": True},
    **{"crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True},
    **{"pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30, "use_adaln_lora": True},
    **{"adaln_lora_dim": 32, "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0},
    **{"rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0},
}
NETWORKS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "cosmos-predict2": ("CosmosT2IPredict2", COSMOS),
    "anima": ("Anima", {**COSMOS, "image_model": "anima"}),
    "pixart": (
        "PixArtSigma",
        {
            **{"image_model": "pixart_sigma", "input_size": 16, "hidden_size": WIDTH, "depth": 2, "num_heads": HEADS},
            **{"micro_condition": False, "model_max_length": 300, "pe_interpolation": 2},
        },
    ),
    "hunyuan-dit": (
        "HunyuanDiT",
        {"image_model": "hydit", "input_size": 16, "hidden_size": WIDTH, "depth": 4, "num_heads": HEADS},
    ),
    "wan": (
        "WAN21_T2V",
        {
            **{"image_model": "wan2.1", "model_type": "t2v", "dim": WIDTH, "out_dim": 16, "num_heads": 1},
            **{"ffn_dim": 64, "num_layers": 2, "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1)},
            **{"qk_norm": True, "cross_attn_norm": True, "eps": 1e-6, "in_dim": 16},
        },
    ),
    "flux": (
        "Flux",
        {"image_model": "flux", "guidance_embed": True, "vec_in_dim": 768, **FLUX},
    ),
    "flux2-klein-4b": (
        "Flux2",
        {
            **{"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "num_heads": 1},
            **{"context_in_dim": 7680, "hidden_size": WIDTH, "vec_in_dim": None, "guidance_embed": False},
            **{"axes_dim": [32, 32, 32, 32], "mlp_ratio": 3.0, "theta": 2000, "global_modulation": True},
            **{"mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "txt_ids_dims": [3]},
            **{"default_ref_method": "index", "ref_index_scale": 10.0, "depth": 2, "depth_single_blocks": 2},
        },
    ),
    "chroma": (
        "Chroma",
        {
            **{"image_model": "chroma", "in_dim": 64, "out_dim": WIDTH, "hidden_dim": 64, "n_layers": 2},
            **({**FLUX, "vec_in_dim": None} if "txt_ids_dims" in FLUX else FLUX),
            **{"in_channels": 64, "out_channels": 64},
        },
    ),
    "sd3": (
        "SD3",
        {
            **{"in_channels": 16, "patch_size": 2, "depth": HEADS, "input_size": None, "adm_in_channels": 2048},
            **{"num_patches": 1024, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None, "qk_norm": "rms"},
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 64 * HEADS},
            },
        },
    ),
    "z-image": (
        "ZImage",
        {
            **{"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": 2560},
            **{"n_layers": 2, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 256},
            **{"ffn_dim_multiplier": 1.0, "norm_eps": 1e-5, "qk_norm": True, "axes_dims": [16, 24, 24]},
            **{"axes_lens": [300, 512, 512], "rope_theta": 256.0, "z_image_modulation": True},
            **{"time_scale": 1000.0, "pad_tokens_multiple": 32},
        },
    ),
    "qwen-image": (
        "QwenImage",
        {
            **{"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1},
            **{"attention_head_dim": WIDTH},
        },
    ),
}
NETWORKS = {family: kind for family, kind in NETWORKS.items() if hasattr(comfy.supported_models, kind[0])}
if not hasattr(comfy.text_encoders.flux, "KleinTokenizer"):
    NETWORKS.pop("flux2-klein-4b", None)
T5 = {"num_layers": 2, "num_heads": 2, "d_kv": 32, "d_ff": 64}
LLM = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
CLIP = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SIZES = {
    **{f"clip_{name}_model_config": CLIP for name in ("l", "g")},
    **{"t5xxl_model_config": T5, "umt5xxl_model_config": T5, "qwen25_7b_model_config": LLM},
    **{"hydit_clip_model_config": CLIP, "mt5xl_model_config": T5},
    **{f"qwen3_{size}_model_config": {**LLM, "num_hidden_layers": 3} for size in ("06b", "4b")},
}


class FewRows(nn.Module):
    """A word table that repeats after some rows, so that it takes little memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(DIFFERENT_ROWS, width), requires_grad=False)

    def forward(self, ids: Tensor, out_dtype: torch.dtype = torch.float32) -> Tensor:
        return self.weight[ids % DIFFERENT_ROWS].to(out_dtype)


def small_transformer(family: str) -> Models:
    """A model, its text encoders and its VAE."""
    name, config = NETWORKS[family]
    kind = getattr(comfy.supported_models, name)(dict(config))
    with made_at_once():
        return _network(kind), _encoders(kind), (video_vae() if family in FRAMES else small_vae(_channels(kind)))


SIZED, THINGS = ("small", "large", "red", "blurry"), ("cat", "dog", "hat", "photo of a house")
PLACED = ("in the snow", "at night", "about a much longer prompt")
FRAMES = ("cosmos-predict2", "anima", "wan", "qwen-image")


def _channels(kind: Any) -> int:
    return kind.latent_format.latent_channels


def _network(kind: Any) -> ModelPatcher:
    kind.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    with pytest.MonkeyPatch.context() as patch:
        if anima := sys.modules.get("comfy.ldm.anima.model"):
            small = {"num_layers": 1, "num_heads": HEADS, "model_dim": WIDTH}
            patch.setattr(anima, "LLMAdapter", functools.partial(anima.LLMAdapter, **small))
        model = kind.get_model({}, "", device=offload)
    fill(model.diffusion_model, seed=1)
    if "pos_embed" in dict(model.diffusion_model.named_buffers()):  # of SD3
        model.diffusion_model.pos_embed.zero_()
    return ModelPatcher(model, comfy.model_management.get_torch_device(), offload)


def _encoders(kind: Any) -> comfy.sd.CLIP:
    everything = {f"text_encoders.clip_{name}.transformer.text_model.final_layer_norm.weight": None for name in "lg"}
    t5 = torch.empty(1, dtype=torch.float32)
    everything["text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"] = t5  # type: ignore[assignment]
    everything["text_encoders.qwen3_4b.transformer.model.norm.weight"] = t5
    tokens = dict.fromkeys(("spiece_model", "mt5xl.spiece_model"), sentence_pieces())
    clip = comfy.sd.CLIP(kind.clip_target(everything), tokenizer_data=tokens, model_options=dict(SIZES))
    for encoder in clip.cond_stage_model.children():
        if isinstance(encoder.layer, list):  # of three layers; the real ones are deeper
            encoder.layer = [0, 1, 2]
            encoder.options_default = (encoder.layer, *encoder.options_default[1:])
        if encoder.special_tokens.get("start") is None:  # no CLIP
            table = encoder.transformer.get_input_embeddings()
            encoder.transformer.set_input_embeddings(FewRows(table.weight.shape[1]))
    fill(clip.cond_stage_model, seed=2)
    return clip


@functools.cache
def sentence_pieces() -> bytes:
    """A small SentencePiece model; umT5's comes in the file of its weights."""
    written = io.BytesIO()
    sentences = [f"a {size} {thing}, {place}" for size in SIZED for thing in THINGS for place in PLACED]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    return written.getvalue()


def video_vae() -> comfy.sd.VAE:
    """Wan's VAE with few channels. A picture is a video of one frame to it."""
    original = comfy.ldm.wan.vae.WanVAE

    def few_channels(**options: Any) -> nn.Module:
        return original(**{**options, "dim": 16})

    comfy.ldm.wan.vae.WanVAE = few_channels
    try:
        network = few_channels(z_dim=16, temperal_downsample=[False, True, True])
        fill(network, seed=3)
        return comfy.sd.VAE(sd=network.state_dict())
    finally:
        comfy.ldm.wan.vae.WanVAE = original
