"""ComfyUI's own Load LoRA and `embedding:` files show a museum as this pack's view does."""

import importlib.util
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from clora_pack.clora_core.model.concept import ConceptToken
from clora_pack.clora_core.model.low_rank import LowRank
from clora_pack.clora_core.model.projections import Projection
from clora_pack.clora_core.museum.file import export, load_museum, save_museum
from clora_pack.clora_core.museum.museum import Exhibit, Museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.model import places_of
from clora_pack.nodes.host.view import view
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .conftest import HOST
from .finding import is_package
from .models import FAMILIES, denoised, recipe, small_models

# the published UNets' blocks: Load LoRA finds its way by them (wrongly, where levels differ in their number of blocks)
SD = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
XL = {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
PROJECTIONS = {"sd15": 32, "sd2": 32, "sdxl": 140}

STOCK = "a photo of embedding:my-cat and (embedding:ink:1.2), embedding:bär in the snow"
OURS = "a photo of <my-cat> and (<ink>:1.2), <bär> in the snow"


@pytest.fixture(scope="module")
def stock() -> ModuleType:
    """ComfyUI's nodes.py; the pack has a `nodes` of its own."""
    assert HOST is not None
    spec = importlib.util.spec_from_file_location("stock_nodes", HOST / "nodes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def _replaceable_folders() -> None:
    assert HOST is not None
    if is_package(HOST):
        pytest.skip("this ComfyUI has no nodes.py, and its folders cannot be replaced for a while")


@pytest.fixture(autouse=True)
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which Load LoRA looks, with museums below it, as the pack has it."""
    (tmp_path / "museums").mkdir()
    kinds = {"loras": (str(tmp_path), {".safetensors"}), "museums": (str(tmp_path / "museums"), {".safetensors"})}
    for kind, (folder, endings) in kinds.items():
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([folder], endings))
    yield tmp_path


@pytest.fixture(autouse=True)
def real_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of few channels, but of all the blocks of the published ones."""
    for family, (kind, changes) in FAMILIES.items():
        monkeypatch.setitem(FAMILIES, family, (kind, {**changes, **(XL if family == "sdxl" else SD)}))


def random_museum(base: HostBase) -> Museum:
    """Everywhere; on every third projection, of two vectors; at a strength of its own; and a word alone."""
    exhibits = []
    for number, (word, every, rank, words, strength) in enumerate(
        (("<my-cat>", 1, 2, 1, 1.0), ("<ink>", 3, 3, 2, 1.0), ("<bär>", 1, 1, 1, -0.5), ("<alone>", 0, 1, 1, 1.0))
    ):
        rng = torch.Generator().manual_seed(number)
        deltas = {
            projection: LowRank(
                0.3 * torch.randn(projection.shape[0], rank, generator=rng),
                torch.randn(rank, projection.shape[1], generator=rng) / math.sqrt(projection.shape[1]),
            )
            for projection in (list(base.slots)[::every] if every else ())
        }
        vectors = {
            name: 0.05 * torch.randn(1, words, width, generator=rng) for name, width in base.family.encoders.items()
        }
        exhibits.append(Exhibit(ConceptToken(word, vectors), deltas, recipe(), strength=strength))
    return Museum(base.fingerprint, tuple(exhibits))


def weights(model: ModelPatcher) -> dict[Projection, Tensor]:
    """Every key and value projection as it is when the model runs, float32."""
    comfy.model_management.load_models_gpu([model])
    unet = model.model.diffusion_model
    return {p: unet.get_submodule(at.module).weight.float().clone().cpu() for p, at in places_of(model).items()}


def with_files(clip: comfy.sd.CLIP, folder: Path) -> comfy.sd.CLIP:
    """The CLIP looking for `embedding:` files in a folder, as one that a checkpoint loader made looks in its own."""
    for part in vars(clip.tokenizer).values():
        if hasattr(part, "embedding_directory"):
            part.embedding_directory = [str(folder)]
    return clip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_load_lora_gives_the_same_weights_as_view(family: str, dtype: torch.dtype, stock, loras, caplog):
    """The museum file as it is, out of the list that the stock node offers."""
    model, clip, vae = small_models(family, dtype, None if dtype == torch.float32 else torch.float32)
    museum = random_museum(HostBase(model, clip, vae))
    path = save_museum(museum, loras / "museums" / "my.museum.safetensors")
    assert "museums/my.museum.safetensors" in folder_paths.get_filename_list("loras")
    before, dense = weights(model), museum.dense()
    with caplog.at_level(logging.WARNING):
        loaded, _ = stock.LoraLoader().load_lora(model, clip, "museums/my.museum.safetensors", 1.0, 1.0)
    left = {record.getMessage().removeprefix("lora key not loaded: ") for record in caplog.records}
    assert left and all(name.startswith(("bundle_emb.", "clora.up.<bär>.")) for name in left)
    theirs, ours = weights(loaded), weights(view(model, clip, load_museum(path))[0])
    assert set(theirs) == set(ours) == set(dense) and len(dense) == PROJECTIONS[family]
    # merged in float32 and rounded once: to float32, or to float16's 2⁻¹¹
    tolerance = {torch.float32: 1e-6, torch.float16: 2**-10}[dtype]
    for projection, weight in theirs.items():
        expected = before[projection] + dense[projection]
        assert (weight - expected).abs().max() <= tolerance * expected.abs().max()
        assert (weight - ours[projection]).abs().max() <= tolerance * expected.abs().max()
        assert (expected - before[projection]).norm() > 0.1 * before[projection].norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_files_give_the_same_pictures_as_view(family: str, stock, loras):
    """What `export` writes, in stock nodes from the files to the sampler."""
    model, clip, vae = small_models(family)
    museum = random_museum(HostBase(model, clip, vae))
    lora, *_ = export(museum, loras).files
    shown, speaking = view(model, clip, museum)
    loaded, stock_clip = stock.LoraLoader().load_lora(model, clip, str(lora.relative_to(loras)), 1.0, 1.0)
    theirs, their_more = stock.CLIPTextEncode().encode(with_files(stock_clip, loras / "embeddings"), STOCK)[0][0]
    ours, our_more = stock.CLIPTextEncode().encode(speaking, OURS)[0][0]
    plain, _ = stock.CLIPTextEncode().encode(clip, "a photo of cats and (ink:1.2), a bear in the snow")[0][0]
    assert torch.equal(theirs, ours) and not torch.equal(theirs[:, : plain.shape[1]], plain)
    assert torch.equal(their_more["pooled_output"], our_more["pooled_output"])
    expected = denoised(shown, ours, our_more["pooled_output"])
    found = denoised(loaded, theirs, their_more["pooled_output"])
    moved = (expected - denoised(model, ours, our_more["pooled_output"])).norm()
    assert (found - expected).norm() < 1e-4 * moved
