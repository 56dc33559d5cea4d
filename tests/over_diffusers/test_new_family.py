"""A family that is only added to the catalogue supports everything that the others support."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from clora_core.cli import main
from clora_core.errors import BaseModelError
from clora_core.model.sampling import Sampling
from clora_core.museum.file import export, imported, load_museum, read_embedding, read_lora, save_museum
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.report.page import as_page
from clora_core.report.review import ReportSettings, make_report
from tests.families import build_vae, byte_tokenizer, original_layout, text_encoder, tokenizer_folder
from tests.museums import taken_apart
from tests.small import museum_of, same_bits
from tests.trial import ENCODER, TEXT_WIDTH, added


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers pipeline of the family."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
        )
        vae, encoder = build_vae(), text_encoder(TEXT_WIDTH, "quick_gelu")
    vae.register_to_config(scaling_factor=0.5)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, **betas)
    parts = vae, encoder, byte_tokenizer(), unet, scheduler, None, None
    pipeline = StableDiffusionPipeline(*parts, requires_safety_checker=False)  # type: ignore[arg-type]
    pipeline.save_pretrained(tmp_path / "model")
    save_file(original_layout(pipeline, "trial"), tmp_path / "model.safetensors")
    return tmp_path / "model"


def test_new_family_learns_saves_loads_exports_imports_and_reports(folder, tmp_path, monkeypatch) -> None:
    added(monkeypatch)
    base = open_base(folder)
    assert (base.fingerprint.family, base.resolution_px, base.family.guidance) == ("trial", 64, 3.0)
    museum = museum_of(base, "<one>", "<two>")
    path = save_museum(museum, tmp_path / "trial.museum.safetensors")
    assert same_bits(museum, load_museum(path))
    facts = taken_apart(path)[0]["__metadata__"]
    assert facts["ss_base_model_version"] == "trial_v1" and facts["ss_v2"] == "False"
    assert facts["modelspec.architecture"] == "trial-diffusion-v1/lora"
    assert facts["modelspec.resolution"] == "64x64"

    lora, *embeddings = export(museum, tmp_path / "plain").files
    read = read_lora(lora)
    assert set(read.bundled) == {"<one>", "<two>"} and set(read.deltas) == set(base.slots)
    vectors = read_embedding(embeddings[0])
    assert torch.equal(vectors[ENCODER], museum.exhibits[0].token.vectors[ENCODER])
    again = Museum(base.fingerprint, (imported(base.fingerprint, "<all>", vectors, read, known=base.slots),))
    for projection, delta in again.dense().items():
        torch.testing.assert_close(delta, museum.dense()[projection])

    seen = make_report(
        base, museum, ReportSettings(1, 2, Sampling(1, base.family.guidance)), latent_shape=base.latent_shape(64, 64)
    )
    assert "&lt;two&gt;" in as_page(seen, title="trial")


def test_single_file_of_the_new_family_is_the_same_base(folder, tmp_path, monkeypatch) -> None:
    added(monkeypatch)
    base = open_base(folder)
    file = open_base(folder.with_suffix(".safetensors"), tokenizer=tokenizer_folder(tmp_path / "words"))
    assert file.fingerprint == base.fingerprint
    assert (file.resolution_px, file.schedule.prediction) == (64, "epsilon")
    states = [one.encode_prompts(["a photo"], []).states for one in (base, file)]
    torch.testing.assert_close(*states)


def test_commands_support_the_new_family(folder, tmp_path, monkeypatch, capsys) -> None:
    added(monkeypatch)
    path = str(save_museum(museum_of(open_base(folder), "<one>"), tmp_path / "trial.museum.safetensors"))
    picture = str(tmp_path / "seen.png")
    view = ["view", "--base", str(folder), "--museum", path, "--prompt", "a photo of <one>", "--out", picture]
    assert main([*view, "--steps", "1", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["show", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"]["architecture"] == "trial"


def test_unknown_family_error_names_the_known_ones(folder, tmp_path, monkeypatch) -> None:
    with pytest.raises(BaseModelError, match=r"width of \[96\].*sd15 \(768\)"):
        open_base(folder)
    with pytest.raises(BaseModelError, match=r"width 96 and is not a model of SD1\.5, SD2 or SDXL"):
        open_base(folder.with_suffix(".safetensors"))
    with monkeypatch.context() as context:
        added(context)
        path = save_museum(museum_of(open_base(folder), "<one>"), tmp_path / "trial.museum.safetensors")
        assert any(name.startswith("lora_unet_down_blocks_0") for name in load_file(path))
    with pytest.raises(Exception, match="no model family 'trial'"):
        load_museum(path)
