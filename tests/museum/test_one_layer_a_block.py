"""UNets with one layer per block, such as KOALA's: their original blocks and LoRA files are numbered differently."""

from pathlib import Path

import pytest
from safetensors import safe_open

from clora_core.model.base import Fingerprint
from clora_core.model.families.unet import layers_per_block
from clora_core.model.projections import Projection
from clora_core.museum.file import append_exhibits, export_lora, header, load_museum, read_lora, save_museum
from clora_core.museum.museum import Museum
from tests.museums import assert_same, exhibit

ORIGINALS = {  # comfy.utils.unet_to_diffusers of comfy.supported_models.KOALA_700M
    "down_blocks.1.attentions.0": "input_blocks_3_1",
    "down_blocks.2.attentions.0": "input_blocks_5_1",
    "up_blocks.0.attentions.0": "output_blocks_0_1",
    "up_blocks.0.attentions.1": "output_blocks_1_1",
    "up_blocks.1.attentions.0": "output_blocks_2_1",
    "up_blocks.1.attentions.1": "output_blocks_3_1",
}
PROJECTIONS = [
    Projection(f"{block}.transformer_blocks.0.attn2.to_{role[0]}", role, (32, 2048))
    for block in ORIGINALS
    for role in ("key", "value")
]


def museum(*words: str) -> Museum:
    exhibits = (exhibit(word, PROJECTIONS, seed=n, architecture="sdxl") for n, word in enumerate(words))
    return Museum(Fingerprint("sdxl", "0" * 64), tuple(exhibits))


def blocks_in(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {name.split("_transformer")[0] for name in file.keys() if name.startswith("lora_unet_")}


def test_layers_per_block_are_recognized_by_the_projections():
    paths = [projection.path for projection in PROJECTIONS]
    assert layers_per_block(paths) == 1
    assert layers_per_block([*paths, "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k"]) == 2
    assert layers_per_block([path for path in paths if path.startswith("down")]) == 2, "a part of any UNet"
    assert layers_per_block([]) == 2


def test_loras_and_museums_use_comfyuis_names_and_load_again(tmp_path: Path):
    one = museum("<one>")
    names = {f"lora_unet_{block}" for block in ORIGINALS.values()}
    export_lora(one, tmp_path / "lora.safetensors")
    assert blocks_in(tmp_path / "lora.safetensors") == names
    assert set(read_lora(tmp_path / "lora.safetensors").deltas) == set(PROJECTIONS)
    path = save_museum(one, tmp_path / "a.museum.safetensors")
    assert blocks_in(path) == names
    append_exhibits(museum("<one>", "<two>").exhibits[1:], path, base=one.base)
    assert_same(load_museum(path), museum("<one>", "<two>"))
    words_only = Museum(one.base, (exhibit("<zero>", [], seed=5, architecture="sdxl"),))
    path = save_museum(words_only, tmp_path / "b.museum.safetensors")
    append_exhibits(one.exhibits, path, base=one.base)
    assert blocks_in(path) == names and load_museum(path).words == ("<zero>", "<one>")


def test_museums_of_earlier_versions_keep_their_tensor_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(header, "layers_per_block", lambda paths: 2)
        path = save_museum(museum("<one>"), tmp_path / "a.museum.safetensors")
    assert "lora_unet_input_blocks_4_1" in (names := blocks_in(path))
    assert_same(load_museum(path), museum("<one>"))
    append_exhibits(museum("<one>", "<two>").exhibits[1:], path, base=museum().base)
    assert blocks_in(path) == names
    assert_same(load_museum(path), museum("<one>", "<two>"))
