"""The catalogue of model families, and that no other file names one of them."""

import ast
from pathlib import Path

import pytest

from clora_core.model.families import FAMILIES, family_with
from clora_core.model.families.family import Family
from clora_core.model.projections import Projection

ROOT = Path(__file__).parents[2]
# the families themselves, the starter's own rooms, and measurements of certain models
VISION = ("clora_core/classification/vision.py", "nodes/host/folders.py")  # the vision starter
ALLOWED = ("clora_core/model/families/", "clora_core/starter/", "nodes/host/starter.py", "clora_core/bench/", *VISION)


def test_a_family_is_named_only_in_its_own_file() -> None:
    names = {family.name for family in FAMILIES}
    for path in (path for folder in ("clora_core", "nodes") for path in (ROOT / folder).rglob("*.py")):
        if not path.relative_to(ROOT).as_posix().startswith(ALLOWED):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
            assert not texts & names, path


PATHS = {
    "cosmos-predict2": "blocks.0.cross_attn.k_proj",
    "anima": "blocks.27.cross_attn.k_proj",
    "z-image": "layers.29.attention.to_k",
    "pixart": "transformer_blocks.3.attn2.to_k",
    "hunyuan-dit": "blocks.39.attn2.kv_proj",
    "wan": "blocks.12.cross_attn.k",
    **dict.fromkeys(
        ("flux", "flux2-klein-4b", "flux2-klein-9b", "chroma", "sd3", "qwen-image"),
        "transformer_blocks.1.attn.add_k_proj",
    ),
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_recognized_by_its_projections(family: Family) -> None:
    path = PATHS.get(family.name, "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k")
    role = "key_value" if family.name == "hunyuan-dit" else "key"
    assert family_with([Projection(path, role, (64, family.text_width))], set(family.needs)) is family
    assert not family.has([Projection(path, "value", (64, family.text_width))])
    assert not family.has([Projection("blocks.0.self_attn.k_proj", "key", (64, family.text_width))])


def test_names_of_families_are_unique() -> None:
    for names in zip(*((family.name, family.title, family.published.version) for family in FAMILIES), strict=True):
        assert len(set(names)) == len(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_everyday_captions_are_different_and_the_first_is_empty(family: Family) -> None:
    assert family.captions[0] == "" and len(set(family.captions)) == len(family.captions) == 160


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_single_file_checkpoint_has_every_text_encoder(family: Family) -> None:
    assert family.reads != "states" or sum(family.encoders.values()) == family.text_width
    assert family.checkpoint is None or list(family.checkpoint.encoders) == list(family.encoders)
