"""SD1.5, SD2 and SDXL with random weights and few channels: the real layouts, text widths and key names, nothing else.

`original_layout` writes them as a single checkpoint; the tests check it against diffusers' own reader of such files.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd15", "sd2", "sdxl")
LENGTH = 20
CROSS, PLAIN = "CrossAttn", ""
SMALL = {"sd15": (32, 64, 64, 64), "sd2": (32, 64, 64, 64), "sdxl": (32, 64, 64)}
REAL = {"sd15": (320, 640, 1280, 1280), "sd2": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def byte_tokenizer(*, padding: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer with an alphabet of bytes and no merges: one token a letter. "!" is id 0, as in the real one."""
    letters = ["!", *sorted(set(ByteLevel.alphabet()) - {"!"})]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=ids, merges=[], model_max_length=LENGTH, pad_token=padding)


def small_pipeline(family: str, *, prediction: str = "epsilon") -> DiffusionPipeline:
    """A whole pipeline of that family with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FAMILIES.index(family))
        unet, vae = build_unet(family, SMALL[family]), build_vae()
        vae.register_to_config(scaling_factor=0.13025 if family == "sdxl" else 0.18215)
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            clip_sample=False,
            steps_offset=1,
        )
        if family == "sdxl":
            first, second = text_encoder(768, "quick_gelu"), text_encoder(1280, "gelu", projected=True)
            tokenizers = byte_tokenizer(), byte_tokenizer(padding="!")
            return StableDiffusionXLPipeline(vae, first, second, *tokenizers, unet, scheduler)
        encoder = text_encoder(768, "quick_gelu") if family == "sd15" else text_encoder(1024, "gelu")
        tokenizer = byte_tokenizer() if family == "sd15" else byte_tokenizer(padding="!")
        return StableDiffusionPipeline(
            vae,
            encoder,
            tokenizer,
            unet,
            scheduler,
            None,
            None,
            requires_safety_checker=False,  # type: ignore[arg-type]
        )


def build_unet(family: str, channels: tuple[int, ...]) -> UNet2DConditionModel:
    """The family's UNet, with these channels at its resolutions."""
    real = channels == REAL[family]
    depths: object = ([1, 2, 10] if real else [1, 2, 3]) if family == "sdxl" else 1
    crossed = [PLAIN, CROSS, CROSS] if family == "sdxl" else [CROSS, CROSS, CROSS, PLAIN]
    more: dict[str, object] = {}
    if family == "sdxl":
        more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        more["projection_class_embeddings_input_dim"] = 1280 + 6 * 256
    return UNet2DConditionModel(
        sample_size={"sd15": 64, "sd2": 64, "sdxl": 128}[family],
        block_out_channels=channels,
        down_block_types=[f"{kind}DownBlock2D" for kind in crossed],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(crossed)],
        transformer_layers_per_block=depths,
        attention_head_dim=8 if family == "sd15" else [width // 64 or 1 for width in channels],
        cross_attention_dim={"sd15": 768, "sd2": 1024, "sdxl": 2048}[family],
        use_linear_projection=family != "sd15",
        **more,
    )


def build_vae(channels: tuple[int, ...] = (32, 32, 64, 64), *, layers: int = 1) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
    )


def text_encoder(width: int, activation: str, *, projected: bool = False, **more: int) -> CLIPTextModel:
    """A CLIP text encoder of that width, by default with two layers over the byte tokenizer's words."""
    tokenizer = byte_tokenizer()
    shape = {"vocab_size": len(tokenizer), "intermediate_size": 64, "num_hidden_layers": 2} | more
    config = CLIPTextConfig(
        hidden_size=width,
        num_attention_heads=width // 64,
        max_position_embeddings=shape.pop("max_position_embeddings", LENGTH),
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def original_layout(pipeline: DiffusionPipeline, family: str) -> dict[str, Tensor]:
    """The pipeline's tensors by the names of a single checkpoint."""
    clip = plain(pipeline.text_encoder)
    named = {f"model.diffusion_model.{key}": value for key, value in unet_layout(pipeline.unet).items()}
    named |= {f"first_stage_model.{key}": value for key, value in vae_layout(pipeline.vae).items()}
    if family == "sd2":
        named |= {f"cond_stage_model.model.{key}": value for key, value in open_clip_layout(clip).items()}
    else:
        prefix = "conditioner.embedders.0.transformer" if family == "sdxl" else "cond_stage_model.transformer"
        named |= {f"{prefix}.text_model.{key}": value for key, value in clip.items()}
        named[f"{prefix}.text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    if family == "sdxl":
        second = open_clip_layout(plain(pipeline.text_encoder_2))
        named |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return {key: value.contiguous() for key, value in named.items()}


def plain(encoder: nn.Module) -> dict[str, Tensor]:
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def unet_layout(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's tensors by their original names."""
    tensors = unet.state_dict()
    attending = {name.split(".attentions.")[0] for name in tensors if ".attentions." in name}
    return {unet_name(name, unet.config["layers_per_block"], attending): value for name, value in tensors.items()}


def unet_name(name: str, layers: int, attending: set[str]) -> str:
    """A UNet tensor's original name. attending: the blocks with attention, which moves their upsampler."""
    for ours, theirs in ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    side, *rest = name.split(".")
    if side == "mid_block":
        kind, index, *inner = rest
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
        return f"{place}.{_resnet('.'.join(inner)) if kind == 'resnets' else '.'.join(inner)}"
    level, kind, index, inner = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
    if side == "down_blocks":
        first = 1 + level * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{inner.removeprefix('conv.')}"
        place = f"input_blocks.{first + index}"
    else:
        place = f"output_blocks.{level * (layers + 1) + index}"
        if kind == "upsamplers":
            place = f"output_blocks.{level * (layers + 1) + layers}"
            return f"{place}.{2 if f'up_blocks.{level}' in attending else 1}.{inner}"
    return f"{place}.0.{_resnet(inner)}" if kind == "resnets" else f"{place}.1.{inner}"


def vae_layout(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The autoencoder's tensors by their original names; its attention's projections are 1×1 convolutions there."""
    levels, found = len(vae.config["block_out_channels"]), {}
    for name, tensor in vae.state_dict().items():
        key = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
        key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{levels - 1 - int(match[1])}.block.", key)
        key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{levels - 1 - int(match[1])}.upsample", key)
        if attention := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", key):
            key = f"{attention[1]}.mid.attn_1.{VAE_ATTENTION[attention[2]]}.{attention[3]}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[key] = tensor
    return found


def open_clip_layout(clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors as OpenCLIP names and stacks them, and some that no text-to-image model reads."""
    width = clip["final_layer_norm.weight"].shape[0]
    found = {"logit_scale": torch.tensor(4.6), "text_projection": torch.zeros(width, width)}
    for name, tensor in clip.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif name in OPEN_CLIP:
            found[OPEN_CLIP[name]] = tensor
        elif stacked := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [clip[name.replace("q_proj", f"{role}_proj")] for role in "qkv"]
            found[f"transformer.resblocks.{stacked[1]}.attn.in_proj_{stacked[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            key = name.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn.", "attn.")
            key = key.replace("layer_norm", "ln_").replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
            found[key] = tensor
    return found


def module_tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Modules nested by the names, with their tensors."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def tokenizer_folder(folder: Path) -> Path:
    byte_tokenizer().save_pretrained(folder)
    return folder


def _resnet(inner: str) -> str:
    part, _, leaf = inner.rpartition(".")
    return f"{RESNET[part]}.{leaf}"
