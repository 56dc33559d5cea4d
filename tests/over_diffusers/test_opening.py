"""Models of all families open from a folder and from a single file, with equal results; errors explain the rest."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor

from clora_core.errors import BaseModelError
from clora_core.model.base import Prediction
from clora_core.over_diffusers import checkpoints, ldm_layout
from clora_core.over_diffusers.base import DiffusersBase, open_base
from tests.families import (
    FAMILIES,
    REAL,
    build_unet,
    build_vae,
    byte_tokenizer,
    open_clip_layout,
    original_layout,
    small_pipeline,
    text_encoder,
    tokenizer_folder,
    unet_layout,
    vae_layout,
)
from tests.saved_models import Saved, opened, prediction_of, random, same, saved_model

PROMPTS = ["a photo", "", "far more letters than fit"]
RESOLUTIONS = {"sd15": 512, "sd2": 512, "sdxl": 1024}


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest) -> Saved:
    return saved_model(request.param)


@pytest.fixture
def base(saved: Saved) -> DiffusersBase:
    return opened(saved.family)


def test_a_folder_is_recognized(saved: Saved, base: DiffusersBase) -> None:
    assert base.family.name == base.fingerprint.family == saved.family
    assert base.resolution_px == RESOLUTIONS[saved.family]
    assert base.latent_shape(64, 128) == (4, 8, 16)
    assert base.schedule.prediction == "epsilon"
    assert base.schedule.levels.equal(saved.pipeline.scheduler.alphas_cumprod)
    assert {name: table.shape[1] for name, table in base.vocabulary().items()} == dict(base.family.encoders)


@torch.no_grad()
def test_single_file_gives_the_results_of_the_folder(saved: Saved, base: DiffusersBase) -> None:
    other = saved.open_file()
    assert other.fingerprint == base.fingerprint
    assert list(other.slots) == list(base.slots)
    assert (other.resolution_px, other.schedule.prediction) == (base.resolution_px, base.schedule.prediction)
    assert other.schedule.levels.equal(base.schedule.levels)
    conditioning, expected = other.encode_prompts(PROMPTS, []), base.encode_prompts(PROMPTS, [])
    same(conditioning.states, expected.states)
    same(prediction_of(other, conditioning), prediction_of(base, expected))
    pictures = random(1, 3, 32, 32).clamp(-1, 1)
    latents = other.encode_pictures(pictures)
    same(latents, base.encode_pictures(pictures))
    same(other.decode_latents(latents), base.decode_latents(latents))
    for one, two in ((other.unet, base.unet), (other.vae, base.vae)):
        tensors = two.state_dict()
        assert all(value.equal(tensors[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_open_clip_is_converted_as_by_diffusers(family: str) -> None:
    saved = saved_model(family)
    prefix = "cond_stage_model.model." if family == "sd2" else "conditioner.embedders.1.model."
    encoder = saved.pipeline.text_encoder_2 if family == "sdxl" else saved.pipeline.text_encoder
    theirs = single_file_utils.convert_open_clip_checkpoint(encoder, load_file(saved.file), prefix=prefix)
    theirs = {name.removeprefix("text_model."): value for name, value in theirs.items()}
    tensors = checkpoints._read(saved.file).under(prefix)
    ours = ldm_layout.open_clip_tensors(tensors, projected=family == "sdxl")
    assert set(ours) == set(theirs)
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_fingerprint_is_the_same_in_half_precision(dtype: torch.dtype) -> None:
    base = saved_model("sd15").open_file(dtype=dtype)
    assert base.fingerprint == opened("sd15").fingerprint
    assert base.unet.dtype == base.encoders[0].table.weight.dtype == dtype
    assert base.vae.dtype == torch.float32


def test_everything_is_frozen(base: DiffusersBase) -> None:
    for model in (base.unet, base.vae, *(encoder.model for encoder in base.encoders)):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_real_sizes_follow_from_the_shapes(family: str) -> None:
    with torch.device("meta"):
        unet, vae = build_unet(family, REAL[family]), build_vae((128, 256, 512, 512), layers=2)
    known = {"text_width": unet.config["cross_attention_dim"], "sample_size": unet.config["sample_size"]}
    config = ldm_layout.unet_config(unet_layout(unet), heads=8 if family == "sd15" else None, **known)
    with torch.device("meta"):
        again = UNet2DConditionModel(**config)  # type: ignore[arg-type]
    heads = [module.heads for module in unet.modules() if hasattr(module, "heads")]
    assert heads == [module.heads for module in again.modules() if hasattr(module, "heads")]
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    found = ldm_layout.vae_config(vae_layout(vae), scaling_factor=0.18215)
    assert found == {name: vae.config[name] for name in found} | {"block_out_channels": [128, 256, 512, 512]}


def test_sd2_is_read_without_its_last_text_layer() -> None:
    encoder = text_encoder(64, "gelu", num_hidden_layers=24, intermediate_size=8, vocab_size=514)
    tensors = open_clip_layout(dict(encoder.state_dict()))
    found = ldm_layout.open_clip_tensors(tensors, projected=False, used=23)
    assert ldm_layout.clip_config(found, activation="gelu")["num_hidden_layers"] == 23
    assert not any(".23." in name for name in found)


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ({}, {}, "epsilon"),
        ({"v_pred": torch.zeros(0)}, {}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"v_pred": torch.zeros(0)}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
    ids=["nothing", "tensor", "metadata", "metadata before tensor"],
)
def test_the_prediction_of_a_file_follows_the_rule(
    tmp_path: Path, extra: dict[str, Tensor], metadata: dict[str, str], expected: Prediction
) -> None:
    saved, path = saved_model("sd15"), tmp_path / "model.safetensors"
    save_file(saved.tensors() | extra, path, metadata=metadata)
    assert open_base(path, tokenizer=saved.tokenizer).schedule.prediction == expected


@pytest.mark.parametrize(("extra", "last"), [(("ztsnr",), False), (("v_pred",), False), (("v_pred", "ztsnr"), True)])
def test_zero_terminal_snr_is_read_as_in_comfyui(tmp_path: Path, extra: tuple[str, ...], last: bool) -> None:
    saved, path = saved_model("sdxl"), tmp_path / "model.safetensors"
    save_file(saved.tensors() | {name: torch.zeros(0) for name in extra}, path)
    schedule = open_base(path, tokenizer=saved.tokenizer).schedule
    assert (float(schedule.levels[-1]) < 1e-6) == last
    assert schedule.prediction == ("v_prediction" if "v_pred" in extra else "epsilon")


def test_prediction_of_the_caller_takes_precedence() -> None:
    assert saved_model("sd15").open_file(prediction="v_prediction").schedule.prediction == "v_prediction"


def test_sd2_is_recognized_as_v_prediction_as_in_comfyui(tmp_path: Path) -> None:
    saved = saved_model("sd2")
    tensors = saved.tensors()
    bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    tensors[bias] = torch.linspace(-0.3, 0.3, len(tensors[bias]))
    save_file(tensors, tmp_path / "model.safetensors")
    base = open_base(tmp_path / "model.safetensors", tokenizer=saved.tokenizer)
    assert (base.schedule.prediction, base.resolution_px) == ("v_prediction", 768)


def test_prediction_of_a_folder_comes_from_its_scheduler(tmp_path: Path) -> None:
    folder = copied(saved_model("sd15"), tmp_path)
    config = folder / "scheduler" / "scheduler_config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps(facts | {"prediction_type": "v_prediction"}))
    assert open_base(folder).schedule.prediction == "v_prediction"
    assert open_base(folder, prediction="epsilon").schedule.prediction == "epsilon"
    config.write_text(json.dumps(facts | {"prediction_type": "sample"}))
    refused(folder, "prediction 'sample'")
    config.write_text(json.dumps(facts | {"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    refused(folder, "FlowMatch")


def test_half_precision_files_of_a_folder_are_read(tmp_path: Path) -> None:
    folder = copied(saved_model("sd15"), tmp_path)
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert open_base(folder).fingerprint == opened("sd15").fingerprint


def copied(saved: Saved, place: Path) -> Path:
    """A copy of the folder, to be spoiled."""
    return Path(shutil.copytree(saved.folder, place / "copy"))


def refused(path: Path, message: str, **options: object) -> None:
    with pytest.raises(BaseModelError, match=message):
        open_base(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.BIN"])
def test_pickles_are_never_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path / name, r"is a pickle.*Only \.safetensors")


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    folder = copied(saved_model("sd15"), tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    refused(folder, "cannot be opened as a model")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "missing", r"does not exist\. Give 'starter'.*Nothing is downloaded")
    refused(tmp_path, r"no 'unet/config\.json'")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", r"is not a \.safetensors file")
    (tmp_path / "transformer").mkdir()
    refused(tmp_path, "Diffusion transformers are supported in ComfyUI only")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"x": torch.zeros(100)}, whole)
    (tmp_path / "torn.safetensors").write_bytes(whole.read_bytes()[:-8])
    refused(tmp_path / "torn.safetensors", "cannot be opened as a model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_down_blocks_0_attentions_0.lora_up.weight", "looks like a LoRA"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "holds no UNet"),
        ("something.weight", "holds no UNet"),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "looks like a UNet alone"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "looks like a UNet alone"),
        ("model.diffusion_model.blocks.0.cross_attn.kv_linear.weight", "is a PixArt model"),
        ("transformer_blocks.0.attn2.to_k.weight", "a diffusion transformer, such as PixArt"),
        ("encoder.down.0.block.0.conv1.weight", "looks like an autoencoder"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "looks like a text encoder"),
        ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight", "width 1280 and is no"),
    ],
    ids="lora sd3 anything unet diffusers-unet pixart ltx vae text refiner".split(),
)
def test_files_of_something_else_are_refused(tmp_path: Path, name: str, message: str) -> None:
    save_file({name: torch.zeros(4, 1280)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", message)


def test_a_transformer_is_refused_by_its_name(tmp_path: Path) -> None:
    names = ("double_blocks.0.txt_attn.qkv", "txt_in", "vector_in.in_layer")
    save_file({f"model.diffusion_model.{n}.weight": torch.zeros(6, 4) for n in names}, tmp_path / "flux.safetensors")
    refused(tmp_path / "flux.safetensors", r"is a FLUX\.1 model.*use FLUX\.1 in ComfyUI")


def test_incomplete_and_other_variants_are_refused(tmp_path: Path) -> None:
    saved, path = saved_model("sd15"), tmp_path / "model.safetensors"
    tensors = saved.tensors()

    def refused_with(changed: dict[str, Tensor], message: str) -> None:
        save_file(changed, path)
        refused(path, message, tokenizer=saved.tokenizer)

    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    refused_with(unet, "holds no autoencoder")
    refused_with(tensors | {"edm_mean": torch.zeros(1)}, "EDM")
    lost = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    refused_with({name: tensor for name, tensor in tensors.items() if name != lost}, r"1 tensors .*conv1\.weight")
    refused_with(tensors | {"model.diffusion_model.extra": torch.zeros(1)}, "but a model of this size has")
    entry = "model.diffusion_model.input_blocks.0.0.weight"
    refused_with(tensors | {entry: torch.zeros(32, 9, 3, 3)}, r"reads 9 channels, but a .* latent has 4")


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    folder = copied(saved_model("sd15"), tmp_path)
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if "layers.1.mlp.fc1.weight" in name))
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(folder, r"lacks 1 of its tensors.*fc1\.weight")


def test_a_missing_tokenizer_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_model("sd15").file

    def unreachable(*names: str, **options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(checkpoints, "hf_hub_download", unreachable)
    refused(path, r"has no tokenizer.*--tokenizer")
    refused(path, "There is no tokenizer in", tokenizer=tmp_path)
    big = byte_tokenizer()
    big.add_tokens(["<more>"])
    big.save_pretrained(tmp_path / "big")
    refused(path, "has 515 tokens, but its text encoder only 514", tokenizer=tmp_path / "big")


def test_tokenizer_is_read_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tokenizer_folder(tmp_path / "cached")
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    monkeypatch.setattr(checkpoints, "hf_hub_download", lambda repository, name, **options: str(folder / name))
    assert len(checkpoints.open_tokenizer(None)) == len(words)


@pytest.mark.slow
def test_a_model_of_real_size_opens_and_predicts(tmp_path: Path) -> None:
    with torch.device("meta"):
        pipeline = small_pipeline("sd15")
        pipeline.register_modules(
            unet=build_unet("sd15", REAL["sd15"]),
            vae=build_vae((128, 256, 512, 512), layers=2),
            text_encoder=text_encoder(
                768,
                "quick_gelu",
                num_hidden_layers=12,
                intermediate_size=3072,
                vocab_size=49408,
                max_position_embeddings=77,
            ),
        )
    layout, rng = original_layout(pipeline, "sd15"), torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(value.shape, generator=rng) * value[0].numel() ** -0.5).half()
        for name, value in layout.items()
        if "position_ids" not in name
    }
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    base = open_base(tmp_path / "model.safetensors", tokenizer=tokenizer_folder(tmp_path / "words"))
    (tmp_path / "model.safetensors").unlink()  # nothing of the file is needed any more
    assert len(base.slots) == 32
    assert sum(parameter.numel() for parameter in base.unet.parameters()) == 859_520_964
    with torch.no_grad():
        prediction = prediction_of(base, base.encode_prompts(["a photo"], []))
    assert prediction.shape == (1, 4, 8, 8) and prediction.isfinite().all()
