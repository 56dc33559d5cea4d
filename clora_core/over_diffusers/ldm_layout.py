"""The original (ldm) layout of Stable Diffusion checkpoints, translated to diffusers' and transformers' names.

Everything follows from the tensors' names and shapes, so any width and depth of these models is supported. For each
model there are two functions: its configuration, and its tensors by their new names. diffusers itself would take the
configuration from the hub.
"""

import re
from collections.abc import Mapping

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from ..errors import BaseModelError

Tensors = Mapping[str, Tensor]
Config = dict[str, object]

OPEN_CLIP = {
    "transformer.resblocks.": "encoder.layers.",
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
SIZE_EMBEDDING = 256  # SDXL embeds each of its six numbers of size and crop this wide
HEAD_WIDTH = 64  # of CLIP, and of most UNets


def unet_levels(tensors: Tensors) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """For each resolution of the UNet, from the finest: its channels, and the transformer blocks in each attention.
    Third, how many residual blocks each has on the way down. Raises BaseModelError if they are irregular."""
    levels: list[list[tuple[int, int]]] = [[]]
    for number in range(1, _count(tensors, "input_blocks")):
        stem = f"input_blocks.{number}"
        if f"{stem}.0.op.weight" in tensors:
            levels.append([])
        elif f"{stem}.0.out_layers.3.weight" in tensors:
            channels = tensors[f"{stem}.0.out_layers.3.weight"].shape[0]
            levels[-1].append((channels, _count(tensors, f"{stem}.1.transformer_blocks")))
    if any(len(set(blocks)) != 1 or len(blocks) != len(levels[0]) for blocks in levels):
        raise BaseModelError(
            "The UNet in this file has irregular blocks, like some distilled models. "
            "Open it as a diffusers folder instead; there the configuration says how it is built."
        )
    channels, depths = zip(*(blocks[0] for blocks in levels), strict=True)
    return channels, depths, len(levels[0])


def unet_config(tensors: Tensors, *, text_width: int, heads: int | None, sample_size: int) -> Config:
    """The configuration of UNet2DConditionModel. tensors: without the prefix "model.diffusion_model.".

    heads: of the attention at every width; None: one for each HEAD_WIDTH channels.
    """
    channels, depths, blocks = unet_levels(tensors)
    middle = _count(tensors, "middle_block.1.transformer_blocks")
    if (depths[-1] or middle) != middle:
        raise BaseModelError("The UNet in this file has another middle block. Open it as a diffusers folder instead.")
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    head_counts = heads or [max(1, width // HEAD_WIDTH) for width in channels]
    config: Config = {
        "sample_size": sample_size,
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), middle],
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "cross_attention_dim": text_width,
        "attention_head_dim": head_counts,  # diffusers reads this as the number of heads
        "use_linear_projection": tensors["middle_block.1.proj_in.weight"].ndim == 2,
    }
    if "label_emb.0.0.weight" in tensors:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_EMBEDDING,
            "projection_class_embeddings_input_dim": tensors["label_emb.0.0.weight"].shape[1],
        }
    return config


def unet_tensors(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    """The UNet's tensors by their diffusers names. config: its `unet_config`."""
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    return _complete(convert_ldm_unet_checkpoint(prefixed, config), len(tensors))


def vae_config(tensors: Tensors, *, scaling_factor: float) -> Config:
    """The configuration of AutoencoderKL. tensors: without the prefix "first_stage_model."."""
    levels = range(_count(tensors, "encoder.down"))
    return {
        "block_out_channels": [tensors[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in levels],
        "layers_per_block": _count(tensors, "encoder.down.0.block"),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "scaling_factor": scaling_factor,
    }


def vae_tensors(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    """The autoencoder's tensors by their diffusers names. config: its `vae_config`."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("loss.", "model_ema."))}
    return _complete(convert_ldm_vae_checkpoint(kept, config), len(kept))


def clip_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """A CLIP text encoder saved by transformers, without its wrapper's prefix and unused tensors."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    kept = ("embeddings.", "encoder.", "final_layer_norm.")
    return {name: tensor for name, tensor in plain.items() if name.startswith(kept) and "position_ids" not in name}


def open_clip_tensors(tensors: Tensors, *, projected: bool, used: int | None = None) -> dict[str, Tensor]:
    """An OpenCLIP text encoder by the names of transformers' CLIPTextModel.

    projected: with its projection. used: the number of its first layers to keep; None for all.
    """
    renamed = {}
    for name, tensor in tensors.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        if name == "logit_scale" or (layer and used and int(layer[1]) >= used):
            continue
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        if name == "text_projection":
            if projected:
                renamed["text_projection.weight"] = tensor.T
        elif stacked := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
            for role, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{stacked[1]}.{role}_proj.{stacked[2]}"] = part
        else:
            renamed[name] = tensor
    return renamed


def clip_config(tensors: Tensors, *, activation: str) -> Config:
    """The configuration of CLIPTextModel, without its special ids. tensors: by transformers' names."""
    words, width = tensors["embeddings.token_embedding.weight"].shape
    projection = tensors.get("text_projection.weight")
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(tensors, "encoder.layers"),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": activation,
    }


def _count(tensors: Tensors, stem: str) -> int:
    """The number of numbered parts under a stem. Raises BaseModelError unless they count from 0."""
    start = stem + "."
    parts = {name[len(start) :].partition(".")[0] for name in tensors if name.startswith(start)}
    numbers = {part for part in parts if part.isdecimal()}
    if lost := sorted(str(number) for number in range(len(numbers)) if str(number) not in numbers):
        raise BaseModelError(f"The file has {len(numbers)} parts of '{stem}', but no '{start}{lost[0]}'. Get it again.")
    return len(numbers)


def _complete(converted: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """What diffusers made of `count` tensors. Raises BaseModelError if it does not know all of them."""
    if len(converted) != count:
        raise BaseModelError(
            f"This part of the file has {count} tensors, but a model of this size has {len(converted)} of them. The "
            "file may be incomplete, or a variant that only its own program can read."
        )
    return converted
