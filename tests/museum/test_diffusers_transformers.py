"""Museums of transformers in diffusers' own LoRA loaders: every weight changes as it does here."""

import inspect
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders import lora_pipeline
from torch import nn

from clora_core.errors import MuseumError
from clora_core.model.families import family_named
from clora_core.model.families.blocks import Blocks
from clora_core.model.projections import Projection
from clora_core.museum.file import export, export_lora
from clora_core.museum.museum import Museum
from tests.museums import exhibit, museum

pytest.importorskip("peft")

WIDTH, TEXT, BLOCKS = 32, 24, 2
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": BLOCKS}
JOINT = HEADS | {"joint_attention_dim": TEXT}
COSMOS = HEADS | {"in_channels": 4, "out_channels": 4, "text_embed_dim": TEXT, "adaln_lora_dim": 8}
COSMOS |= {"max_size": (1, 8, 8), "extra_pos_embed_type": None}
FLUX = JOINT | {"in_channels": 16, "num_single_layers": 1}
# family → the class of its network with its settings, and the loader of its pipelines
NETWORKS = {
    "cosmos-predict2": ("CosmosTransformer3DModel", COSMOS, "CosmosLoraLoaderMixin"),
    "anima": ("CosmosTransformer3DModel", COSMOS, "AnimaLoraLoaderMixin"),
    "wan": (
        "WanTransformer3DModel",
        HEADS | {"text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32, "in_channels": 4, "out_channels": 4},
        "WanLoraLoaderMixin",
    ),
    "flux": (
        "FluxTransformer2DModel",
        FLUX | {"pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)},
        "FluxLoraLoaderMixin",
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        FLUX
        | {"axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 16, "approximator_layers": 1},
        "FluxLoraLoaderMixin",
    ),
    "flux2-klein-4b": (
        "Flux2Transformer2DModel",
        FLUX | {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        "Flux2LoraLoaderMixin",
    ),
    "sd3": (
        "SD3Transformer2DModel",
        JOINT
        | {"sample_size": 8, "caption_projection_dim": WIDTH, "pooled_projection_dim": 8, "pos_embed_max_size": 8},
        "SD3LoraLoaderMixin",
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        JOINT | {"in_channels": 16, "out_channels": 4, "axes_dims_rope": (4, 4, 8)},
        "QwenImageLoraLoaderMixin",
    ),
}


def in_diffusers(family: str, projection: Projection) -> str:
    """The module in diffusers: read off its own classes, not off ours."""
    number = projection.path.split(".")[1]
    letter = projection.role[0]
    if family in ("cosmos-predict2", "anima"):
        return f"transformer_blocks.{number}.attn2.to_{letter}"
    if family == "wan":
        return f"blocks.{number}.attn2.to_{letter}"
    return f"transformer_blocks.{number}.attn.add_{letter}_proj"


def network_of(family: str) -> tuple[nn.Module, type]:
    name, settings, loader = NETWORKS[family]
    if not hasattr(diffusers, name) or not hasattr(lora_pipeline, loader):
        pytest.skip(f"diffusers {diffusers.__version__} has no {loader}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(diffusers, name)(**settings), getattr(lora_pipeline, loader)


def museum_on(family: str, modules: dict[str, nn.Module]) -> Museum:
    """Two exhibits, the second with another rank on every other projection."""
    structure = family_named(family).structure
    assert isinstance(structure, Blocks)
    on = []
    for role, template in structure.paths.items():
        for number in range(BLOCKS):
            shape = modules[in_diffusers(family, Projection(template.format(number), role, (1, 1)))].weight.shape
            on.append(Projection(template.format(number), role, tuple(shape)))
    own = {"architecture": family}
    exhibits = exhibit("<cat>", on, seed=1, **own), exhibit("<dog>", on, seed=2, ranks=(3, 2), **own)
    return Museum(museum(family).base, exhibits)


def linear(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def accepted(function: Callable[..., object], **arguments: object) -> dict[str, object]:
    """Those that the function knows: loaders differ."""
    return {name: value for name, value in arguments.items() if name in inspect.signature(function).parameters}


@pytest.mark.parametrize("family", NETWORKS)
def test_every_weight_changes_as_ours(family: str, tmp_path: Path):
    network, loader = network_of(family)
    before = {name: module.weight.detach().clone() for name, module in linear(network).items()}
    whole = museum_on(family, linear(network))
    export_lora(whole, tmp_path / "museum.safetensors", for_diffusers=True)
    state = loader.lora_state_dict(str(tmp_path / "museum.safetensors"))
    load = loader.load_lora_into_transformer
    load(state, transformer=network, **accepted(load, network_alphas=None))
    network.fuse_lora()
    network.unload_lora()
    expected = {in_diffusers(family, projection): delta.dense() for projection, delta in whole.deltas().items()}
    assert len(expected) == 2 * BLOCKS
    for name, module in linear(network).items():
        change = module.weight.detach() - before[name]
        torch.testing.assert_close(change, expected.get(name, torch.zeros_like(change)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["pixart", "hunyuan-dit"])
def test_a_family_without_a_lora_loader_is_refused(family: str, tmp_path: Path):
    structure = family_named(family).structure
    assert isinstance(structure, Blocks)
    on = [Projection(path.format(0), role, (8, 6)) for role, path in structure.paths.items()]
    whole = Museum(museum(family).base, (exhibit("<cat>", on, seed=1, architecture=family),))
    with pytest.raises(MuseumError, match=r"diffusers loads no LoRA of .*Export an ordinary one"):
        export_lora(whole, tmp_path / "museum.safetensors", for_diffusers=True)
    with pytest.raises(MuseumError, match="diffusers loads no LoRA of"):
        export(whole, tmp_path / "plain", for_diffusers=True)
    assert not (tmp_path / "plain").exists()
    export_lora(whole, tmp_path / "museum.safetensors")
