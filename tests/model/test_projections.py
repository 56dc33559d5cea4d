"""Exactly the keys and values of cross-attention are found, equally under diffusers' and the original names."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from clora_core.errors import BaseModelError
from clora_core.model.base import fingerprint
from clora_core.model.families import family_named, family_with, find_projections, recognized
from clora_core.model.families.unet import ldm_path
from clora_core.starter.model import build_unet as build_starter_unet
from tests.families import FAMILIES, REAL, SMALL, build_unet, module_tree, unet_layout


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def unet(family: str) -> UNet2DConditionModel:
    return build_unet(family, SMALL[family])


def keys_and_values(unet: nn.Module) -> set[int]:
    """Found in another way: the two projections of every transformer block's second attention."""
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    return {id(projection) for block in blocks for projection in (block.attn2.to_k, block.attn2.to_v)}


def test_only_keys_and_values_of_cross_attention_are_found(unet: UNet2DConditionModel) -> None:
    found = find_projections(unet)
    assert {id(slot.module) for slot in found.values()} == keys_and_values(unet)
    for projection, slot in found.items():
        assert unet.get_submodule(projection.path) is slot.module and slot.whole
        assert projection.shape == tuple(slot.weight.shape)
        assert projection.role == ("key" if projection.path.endswith("to_k") else "value")
    assert list(found) == sorted(found)


def test_original_names_give_the_same_projections_and_fingerprint(unet: UNet2DConditionModel) -> None:
    found, original = find_projections(unet), find_projections(module_tree(unet_layout(unet)))
    assert list(original) == list(found)
    assert all(original[projection].weight.equal(found[projection].weight) for projection in found)
    family = family_with(found, ())
    assert fingerprint(family, original) == fingerprint(family, found)


def test_projections_are_found_in_a_wrapped_unet(unet: UNet2DConditionModel) -> None:
    wrapped = {f"diffusion_model.{name}": tensor for name, tensor in unet_layout(unet).items()}
    assert list(find_projections(module_tree(wrapped))) == list(find_projections(unet))


def test_the_original_path_leads_to_the_same_module(unet: UNet2DConditionModel) -> None:
    tree = module_tree(unet_layout(unet))
    for projection, slot in find_projections(tree).items():
        assert tree.get_submodule(ldm_path(projection.path)) is slot.module


@pytest.mark.parametrize(("family", "count"), [("sd15", 32), ("sd2", 32), ("sdxl", 140)], ids=FAMILIES)
def test_models_of_real_size_have_the_expected_number_of_projections(family: str, count: int) -> None:
    with torch.device("meta"):
        unet = build_unet(family, REAL[family])
    found = find_projections(unet)
    assert len(found) == count == len(keys_and_values(unet))
    assert list(find_projections(module_tree(unet_layout(unet)))) == list(found)
    assert family_with(found, ()).name == family


def test_projections_of_the_starter_are_found_under_either_naming() -> None:
    unet = build_starter_unet()
    found = find_projections(unet)
    assert {id(slot.module) for slot in found.values()} == keys_and_values(unet)
    assert list(find_projections(module_tree(unet_layout(unet)))) == list(found)
    assert family_with(found, ()).name == "starter"


def test_lora_keys_are_those_of_ordinary_lora_files() -> None:
    with torch.device("meta"):
        sd15, sdxl = (find_projections(build_unet(family, REAL[family])) for family in ("sd15", "sdxl"))
    short = {family_named("sd15").lora_key(projection) for projection in sd15}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k" in short
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_v" in short
    long = {family_named("sdxl").lora_key(projection) for projection in sdxl}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k" in long
    assert "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_v" in long
    assert "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_k" in long
    assert len(short) == len(sd15) and len(long) == len(sdxl)


def test_a_single_stream_model_is_refused() -> None:
    stream = module_tree({"single_blocks.0.linear1.weight": torch.zeros(12, 4)})
    with pytest.raises(BaseModelError, match=r"of its own, or shares.*sd15, sd2, sdxl"):
        find_projections(stream)


def test_an_unknown_family_is_refused_with_its_projections() -> None:
    joint = module_tree({"transformer_blocks.0.attn.add_k_proj.weight": torch.zeros(4, 4)})
    with pytest.raises(BaseModelError, match=r"known family.*1 key and value.*add_k_proj"):
        recognized(joint)


def test_the_rows_of_a_fused_weight_are_found() -> None:
    """FLUX.1 in ComfyUI's layout: queries, keys and values of the text in one weight."""
    weight = torch.arange(36.0).view(12, 3)
    names = {"double_blocks.7.txt_attn.qkv.weight": weight, "txt_in.weight": weight}
    family, slots = recognized(module_tree({**names, "vector_in.in_layer.weight": weight}))
    assert family.name == "flux"
    key, value = slots
    assert (key.path, key.role, key.shape) == ("transformer_blocks.7.attn.add_k_proj", "key", (4, 3))
    assert slots[key].weight.equal(weight[4:8]) and slots[value].weight.equal(weight[8:])
    assert family.lora_key(value) == "transformer.transformer_blocks.7.attn.add_v_proj"
    output = torch.randn(2, 5, 12)
    changed = slots[key].added(output, torch.ones(2, 5, 4))
    assert changed[..., :4].equal(output[..., :4]) and changed[..., 8:].equal(output[..., 8:])
    assert changed[..., 4:8].equal(output[..., 4:8] + 1)


def test_an_unknown_text_width_is_refused_with_the_known_ones() -> None:
    tree = module_tree({"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 1280)})
    with pytest.raises(BaseModelError, match=r"width of \[1280\].*sdxl \(2048\)"):
        family_with(find_projections(tree), ())
    with pytest.raises(BaseModelError, match="no model family 'sd9'"):
        family_named("sd9")
