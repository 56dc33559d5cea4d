"""The small transformers, trained in diffusers' classes, are the same networks in ComfyUI's."""

import importlib
import inspect
import re
from typing import Any

import comfy.ops
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
from clora_pack.clora_core.bench.small_transformers import CHANNELS, PATCH, SIDE, WEIGHTS, open_small

from .models import ordinary

NAMES = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
HEAD, TEXT, TOKENS = 32, 128, 32
COSMOS = {
    r"patch_embed\.proj": "x_embedder.proj.1",
    r"time_embed\.t_embedder": "t_embedder.1",
    r"time_embed\.norm": "t_embedding_norm",
    r"transformer_blocks": "blocks",
    r"norm1\.linear_": "adaln_modulation_self_attn.",
    r"norm2\.linear_": "adaln_modulation_cross_attn.",
    r"norm3\.linear_": "adaln_modulation_mlp.",
    r"attn1": "self_attn",
    r"attn2": "cross_attn",
    r"to_([qkv])": r"\1_proj",
    r"norm_([qk])": r"\1_norm",
    r"to_out\.0": "output_proj",
    r"ff\.net\.0\.proj": "mlp.layer1",
    r"ff\.net\.2": "mlp.layer2",
    r"norm_out\.linear_": "final_layer.adaln_modulation.",
    r"proj_out": "final_layer.linear",
}
LUMINA = {
    r"time_caption_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"time_caption_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"time_caption_embed\.caption_embedder": "cap_embedder",
    r"norm1\.linear": "adaLN_modulation.1",
    r"norm1\.norm": "attention_norm1",
    r"\.norm([12])": r".attention_norm\1",
    r"attn\.norm_([qk])": r"attention.\1_norm",
    r"attn\.to_out\.0": "attention.out",
    r"attn\.": "attention.",
    r"linear_([123])": r"w\1",
    r"norm_out\.w1": "final_layer.adaLN_modulation.1",
    r"norm_out\.w2": "final_layer.linear",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_hosts_class_predicts_the_same(name: str):
    small = open_small(name)
    network = {"cosmos-predict2": cosmos, "qwen-image": qwen_image, "lumina": lumina}[name](small.network)
    rng = torch.Generator().manual_seed(3)
    latents, states = torch.randn(2, CHANNELS, SIDE, SIDE, generator=rng), torch.randn(2, TOKENS, TEXT, generator=rng)
    sigmas = torch.tensor([0.2, 0.9])
    expected = small.small.run(small.network, latents, sigmas, states)
    with ordinary(), torch.no_grad():
        if name == "lumina":
            found = network(latents, sigmas, states, TOKENS)
        else:
            found = network(latents.unsqueeze(2), sigmas, states).squeeze(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def cosmos(trained: nn.Module) -> nn.Module:
    blocks = len(trained.get_submodule("transformer_blocks"))  # type: ignore[arg-type]
    rank, width = trained.get_parameter("transformer_blocks.0.norm1.linear_1.weight").shape
    network = built(
        "cosmos.predict2",
        "MiniTrainDIT",
        **{"max_img_h": SIDE, "max_img_w": SIDE, "max_frames": 1, "in_channels": CHANNELS, "out_channels": CHANNELS},
        **{"patch_spatial": PATCH, "patch_temporal": 1, "concat_padding_mask": False, "model_channels": width},
        **{"num_blocks": blocks, "num_heads": width // HEAD, "crossattn_emb_channels": TEXT, "pos_emb_cls": "rope3d"},
        **{"use_adaln_lora": True, "adaln_lora_dim": rank, "extra_per_block_abs_pos_emb": False},
        **{f"rope_{axis}_extrapolation_ratio": 1.0 for axis in "hwt"},
    )
    return filled(network, trained, COSMOS)


def qwen_image(trained: nn.Module) -> nn.Module:
    width = len(trained.get_parameter("img_in.weight"))
    network = built(
        "qwen_image.model",
        "QwenImageTransformer2DModel",
        **{"in_channels": CHANNELS * PATCH**2, "num_layers": len(trained.get_submodule("transformer_blocks"))},  # type: ignore[arg-type]
        **{"attention_head_dim": HEAD, "num_attention_heads": width // HEAD, "joint_attention_dim": TEXT},
        **{"axes_dims_rope": (8, 12, 12)},
    )
    return filled(network, trained, {})


def lumina(trained: nn.Module) -> nn.Module:
    model = importlib.import_module("comfy.ldm.lumina.model")
    width = len(trained.get_parameter("x_embedder.weight"))
    newer = "z_image_modulation" in inspect.signature(model.NextDiT).parameters  # counts in widths, not in four
    network = built(
        "lumina.model",
        "NextDiT",
        **{"patch_size": PATCH, "in_channels": CHANNELS, "dim": width, "cap_feat_dim": TEXT, "n_refiner_layers": 1},
        **{"n_layers": len(trained.get_submodule("layers")), "n_heads": width // HEAD, "n_kv_heads": width // HEAD},  # type: ignore[arg-type]
        **{"multiple_of": 32, "ffn_dim_multiplier": 2.0 if newer else 0.5, "norm_eps": 1e-5, "qk_norm": True},
        **{"axes_dims": [8, 12, 12], "axes_lens": [2 * TOKENS, SIDE, SIDE]},
    )
    return filled(network, trained, LUMINA)


def built(module: str, name: str, **config: Any) -> nn.Module:
    kind = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
    return kind(**config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)


def filled(network: nn.Module, trained: nn.Module, names: dict[str, str]) -> nn.Module:
    """The host's network with these weights. Keys, queries and values are one weight in Lumina."""
    tensors = dict(trained.state_dict())
    for name in [name for name in tensors if names is LUMINA and name.endswith("attn.to_q.weight")]:
        parts = [tensors.pop(name.replace("to_q", f"to_{part}")) for part in "qkv"]
        tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, other in names.items():
            name = re.sub(pattern, other, name)
        renamed[name] = tensor
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    unused = ("pos_embedder.", "norm_final.")  # fixed numbers; a norm that nothing calls
    assert not unexpected and all(name.startswith(unused) for name in missing)
    return network.eval()
