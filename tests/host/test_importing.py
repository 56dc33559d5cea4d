"""ComfyUI's own loaders as independent readers: of LoRAs that are imported, and of embeddings that are exported."""

from collections.abc import Callable
from pathlib import Path

import comfy.sd1_clip
import comfy.utils
import pytest
import torch
from clora_pack.clora_core.model.families.unet import ldm_path
from clora_pack.clora_core.model.projections import Projection
from clora_pack.clora_core.museum.file import export, export_embeddings, imported, read_embedding, read_lora
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.view import view
from safetensors.torch import save_file

from .layouts import assert_same_move, layout_models, stock_view
from .models import FAMILIES, Models, random_museum

KOHYA, DIFFUSERS, OLDER = ("lora_up", "lora_down"), ("lora_B", "lora_A"), ("lora.up", "lora.down")


def flat(path: str) -> str:
    return path.replace(".", "_")


NAMES: dict[str, tuple[Callable[[str], str], tuple[str, str]]] = {
    "kohya, diffusers' blocks": (lambda path: f"lora_unet_{flat(path)}.", KOHYA),
    "kohya, original blocks": (lambda path: f"lora_unet_{flat(ldm_path(path))}.", KOHYA),
    "comfyui": (lambda path: f"diffusion_model.{ldm_path(path)}.", KOHYA),
    "simpletuner": (lambda path: f"lycoris_{flat(path)}.", KOHYA),
    "diffusers": (lambda path: f"unet.{path}.".replace(".to_", ".processor.to_"), DIFFUSERS),
    "older diffusers": (lambda path: f"unet.{path}_".replace(".to_", ".processor.to_"), OLDER),
}


def write_lora(projections: list[Projection], path: Path, naming: str, *, alpha: float | None) -> None:
    rng, tensors = torch.Generator().manual_seed(1), {}
    prefix, (up, down) = NAMES[naming]
    for index, projection in enumerate(projections):
        (rows, columns), rank = projection.shape, 1 + index % 3
        tensors[f"{prefix(projection.path)}{up}.weight"] = torch.randn(rows, rank, generator=rng)
        tensors[f"{prefix(projection.path)}{down}.weight"] = torch.randn(rank, columns, generator=rng)
        if alpha:
            tensors[f"{prefix(projection.path)}alpha"] = torch.tensor(alpha + index % 2)
    save_file(tensors, path)


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest) -> Models:
    with torch.inference_mode():
        return layout_models(request.param)


def test_imported_lora_looks_as_in_comfyui(models: Models, tmp_path: Path):
    model, clip, _ = models
    base = HostBase(*models)
    vectors = random_museum(base, "<word>").exhibits[0].token.vectors
    for naming in NAMES:
        write_lora(
            list(base.slots), tmp_path / "a.safetensors", naming, alpha=2.0 if "diffusers" not in naming else None
        )
        lora = read_lora(tmp_path / "a.safetensors")
        exhibit = imported(base.fingerprint, "<tom>", vectors, lora, known=base.slots)
        shown, _ = view(model, clip, Museum(base.fingerprint, (exhibit,)))
        assert len(shown.patches) == len(base.slots)
        assert_same_move(shown, stock_view(model, tmp_path / "a.safetensors"))


def test_comfyui_shows_an_exported_lora_of_lower_rank(models: Models, tmp_path: Path):
    model, clip, _ = models
    base = HostBase(*models)
    whole = random_museum(base, "<one>", "<two>", "<three>")
    lora, *_ = export(whole, tmp_path, rank=3).files
    exhibit = imported(base.fingerprint, "<all>", whole.tokens[0].vectors, read_lora(lora), known=base.slots)
    assert exhibit.rank == 3
    assert_same_move(stock_view(model, lora), view(model, clip, Museum(base.fingerprint, (exhibit,)))[0])


def test_comfyui_finds_the_words_in_exported_embedding_files(models: Models, tmp_path: Path):
    whole = random_museum(HostBase(*models), "<one>", "<two>")
    for path, token in zip(export_embeddings(whole, tmp_path), whole.tokens, strict=True):
        for name, vectors in token.vectors.items():
            width = vectors.shape[-1]
            found = comfy.sd1_clip.load_embed(path.stem, [str(tmp_path)], width, embed_key=name)
            assert torch.equal(found, vectors[0])
            assert torch.equal(read_embedding(path)[name], vectors)
