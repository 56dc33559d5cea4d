"""diffusers pipelines with their own loaders agree with this package: weights, words and predictions."""

import math
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from clora_core.method.recipe import Recipe
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.families import find_projections
from clora_core.model.low_rank import LowRank
from clora_core.museum.file import export, load_view, save_museum
from clora_core.museum.museum import Exhibit, Museum
from tests.families import FAMILIES, small_pipeline
from tests.saved_models import opened

pytest.importorskip("peft")

PROMPT = "<cat> in <ink>"


def random_museum(base: Base) -> Museum:
    """Three exhibits: everywhere, on every third projection at a strength of its own, and of two vectors."""
    exhibits = []
    for number, (word, every, rank, words, strength) in enumerate(
        (("<cat>", 1, 2, 1, 1.0), ("<dog>", 3, 3, 1, -0.5), ("<ink>", 2, 1, 2, 1.0))
    ):
        rng = torch.Generator().manual_seed(number)
        deltas = {
            projection: LowRank(
                0.3 * torch.randn(projection.shape[0], rank, generator=rng),
                torch.randn(rank, projection.shape[1], generator=rng) / math.sqrt(projection.shape[1]),
            )
            for projection in list(base.slots)[::every]
        }
        vectors = {
            name: 0.05 * torch.randn(1, words, width, generator=rng) for name, width in base.family.encoders.items()
        }
        exhibits.append(Exhibit(ConceptToken(word, vectors), deltas, Recipe(), strength=strength))
    return Museum(base.fingerprint, tuple(exhibits))


def add_words(pipeline: diffusers.DiffusionPipeline, files: list[Path], words: tuple[str, ...]) -> None:
    """As in diffusers' documentation: the whole file for one encoder, tensor by tensor for SDXL's two."""
    for path, word in zip(files, words, strict=True):
        tensors = load_file(path)
        if set(tensors) != {"clip_l", "clip_g"}:
            pipeline.load_textual_inversion(str(path), token=word)
            continue
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            parts = {"text_encoder": f"text_encoder{suffix}", "tokenizer": f"tokenizer{suffix}"}
            given = {key: getattr(pipeline, part) for key, part in parts.items()}
            pipeline.load_textual_inversion({word: tensors[name]}, token=word, **given)


@torch.no_grad()
def states_of(pipeline: diffusers.DiffusionPipeline, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The UNet's inputs for a prompt: states, and SDXL's pooled vectors."""
    encoded = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return encoded[0], encoded[2] if len(encoded) == 4 else None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_shows_an_exported_museum(family, tmp_path):
    """Each projection's weight, and the encoded words, against this package's own view of the museum's file."""
    base, pipeline = opened(family), small_pipeline(family)
    before = {p: module.weight.detach().clone() for p, module in find_projections(pipeline.unet).items()}
    museum = random_museum(base)
    save_museum(museum, tmp_path / "museum.safetensors")
    view = load_view(tmp_path / "museum.safetensors")
    lora, *embeddings = export(museum, tmp_path / "plain", for_diffusers=True).files
    pipeline.load_lora_weights(str(lora))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = {p: module.weight.detach() for p, module in find_projections(pipeline.unet).items()}
    assert set(after) == set(view.deltas) == set(base.slots)
    for projection, weight in after.items():
        torch.testing.assert_close(weight, before[projection] + view.deltas[projection], atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, before[projection])
    add_words(pipeline, embeddings, museum.words)
    states, pooled = states_of(pipeline, PROMPT)
    with torch.no_grad(), attached(base, view.deltas):
        ours = base.encode_prompts([PROMPT], view.tokens)
        torch.testing.assert_close(ours.states, states, atol=1e-5, rtol=1e-4)
        if pooled is not None:
            torch.testing.assert_close(ours.pooled, pooled, atol=1e-5, rtol=1e-4)
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
        more = {}
        if pooled is not None:
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        theirs = pipeline.unet(noisy, torch.tensor([500]), states, **more).sample
        torch.testing.assert_close(base.predict(noisy, torch.tensor([500]), ours), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_lora_tensors_of_a_museum_file(family, tmp_path):
    """Its LoRA loader accepts LoRA keys only, so it gets these alone; all ranks must be equal."""
    base, pipeline = opened(family), small_pipeline(family)
    cat = random_museum(base).only(["<cat>"])
    save_museum(cat, tmp_path / "museum.safetensors")
    tensors = load_file(tmp_path / "museum.safetensors")
    before = {p: module.weight.detach().clone() for p, module in find_projections(pipeline.unet).items()}
    with pytest.raises(ValueError, match="all LoRA param names contain"):
        pipeline.load_lora_weights(str(tmp_path / "museum.safetensors"))
    pipeline.load_lora_weights({name: value for name, value in tensors.items() if name.startswith("lora_unet_")})
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for projection, module in find_projections(pipeline.unet).items():
        expected = before[projection] + cat.dense()[projection]
        torch.testing.assert_close(module.weight.detach(), expected, atol=1e-6, rtol=1e-5)
    words = {name.removeprefix("bundle_emb.<cat>."): v for name, v in tensors.items() if name.startswith("bundle_emb.")}
    if family != "sdxl":
        pipeline.load_textual_inversion({"<cat>": words["string_to_param.*"]}, token="<cat>")
        row = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids("<cat>")]
        assert torch.equal(row, cat.tokens[0].vectors[next(iter(base.family.encoders))][0, 0])
