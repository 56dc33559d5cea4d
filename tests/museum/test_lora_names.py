"""LoRAs in other programs' formats change the weights as in their own loaders."""

from pathlib import Path

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from clora_core.errors import MuseumError
from clora_core.model.families import find_projections
from clora_core.museum.file import read_lora
from tests.families import FAMILIES, SMALL, build_unet, unet_name

LOADERS = {
    "sd15": StableDiffusionLoraLoaderMixin,
    "sd2": StableDiffusionLoraLoaderMixin,
    "sdxl": StableDiffusionXLLoraLoaderMixin,
}


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    with torch.random.fork_rng(devices=[]):
        return {family: build_unet(family, SMALL[family]).requires_grad_(False) for family in FAMILIES}


def factors(unet: UNet2DConditionModel, *, seed: int = 0, most: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    """path → up and down of random numbers, with ranks from 1 to `most`, for every key and value projection."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for index, projection in enumerate(find_projections(unet)):
        (rows, columns), rank = projection.shape, 1 + index % most
        found[projection.path] = torch.randn(rows, rank, generator=rng), torch.randn(rank, columns, generator=rng)
    return found


def kohya_name(path: str, family: str) -> str:
    """kohya's name of a module: of the original UNet for SDXL, of diffusers' for others."""
    name = unet_name(f"{path}.weight", 2, set()).removesuffix(".weight") if family == "sdxl" else path
    return "lora_unet_" + name.replace(".", "_")


def kohya_file(unet: UNet2DConditionModel, family: str, path: Path, dtype: torch.dtype = torch.float32) -> dict:
    """A file of kohya's trainer, with an alpha of its own for each module. Returns path → ΔW."""
    tensors, expected = {}, {}
    for index, (name, (up, down)) in enumerate(factors(unet).items()):
        stem, alpha = kohya_name(name, family), 0.5 + index % 3
        up, down = up.to(dtype), down.to(dtype)
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
        tensors[f"{stem}.alpha"] = torch.tensor(alpha).to(dtype)
        expected[name] = alpha / len(down) * (up.double() @ down.double())
    save_file(tensors, path, {"ss_network_module": "networks.lora", "ss_steps": "1200"})
    return expected


def assert_moves(lora, expected: dict[str, Tensor]) -> None:
    assert {projection.path for projection in lora.deltas} == set(expected)
    for projection, delta in lora.deltas.items():
        moved = expected[projection.path]
        assert projection.shape == moved.shape
        torch.testing.assert_close(delta.up.double() @ delta.down.double(), moved.double(), rtol=1e-5, atol=1e-5)


def moved_by_diffusers(unet: UNet2DConditionModel, source: Path, family: str) -> dict[str, Tensor]:
    """path → how diffusers' own loader and peft change each key and value projection."""
    before = {p.path: module.weight.detach().clone() for p, module in find_projections(unet).items()}
    state, alphas, metadata = LOADERS[family].lora_state_dict(
        str(source), unet_config=unet.config, return_lora_metadata=True
    )
    LOADERS[family].load_lora_into_unet(state, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    after = {p.path: module.weight.detach().clone() for p, module in find_projections(unet).items()}
    unet.unfuse_lora()
    unet.unload_lora()
    return {path: after[path] - before[path] for path in before}


@pytest.mark.parametrize("family", FAMILIES)
def test_loras_of_kohyas_trainer_are_read(family, unets, tmp_path):
    expected = kohya_file(unets[family], family, tmp_path / "cat.safetensors")
    lora = read_lora(tmp_path / "cat.safetensors")
    assert_moves(lora, expected)
    assert (lora.left_out, lora.steps) == ((), 1200)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_kohyas_names_the_same_way(family, unets, tmp_path):
    """With one alpha and one rank for all, since diffusers scales files with different ones wrongly."""
    tensors = {}
    for name, (up, down) in factors(unets[family], most=1).items():
        stem = kohya_name(name, family)
        tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down, f"{stem}.alpha": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "cat.safetensors")
    moved = moved_by_diffusers(unets[family], tmp_path / "cat.safetensors", family)
    lora = read_lora(tmp_path / "cat.safetensors")
    assert {projection.path for projection in lora.deltas} == set(moved)
    for projection, delta in lora.deltas.items():
        torch.testing.assert_close(delta.dense(), moved[projection.path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "with_config"), [("sd15", True), ("sd15", False), ("sd2", True), ("sdxl", True)])
def test_loras_of_diffusers_training_scripts_are_read(family, with_config, unets, tmp_path):
    """Trained by peft inside diffusers and written by its `save_lora_weights`, as its training scripts do it."""
    unet = unets[family]
    paths = [projection.path for projection in find_projections(unet)][::3]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=paths, rank_pattern={paths[0]: 2}, alpha_pattern={paths[1]: 3, paths[2]: 1}
    )
    unet.add_adapter(config)
    _randomise(unet)
    metadata = {"unet_lora_adapter_metadata": config.to_dict()} if with_config else {}
    layers = get_peft_model_state_dict(unet)
    LOADERS[family].save_lora_weights(tmp_path, unet_lora_layers=layers, **metadata)
    unet.delete_adapters("default")
    unet.unload_lora()
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert_moves(lora, _by_hand(layers, config if metadata else None))
    moved = moved_by_diffusers(unet, tmp_path / "pytorch_lora_weights.safetensors", family)
    for projection, delta in lora.deltas.items():
        torch.testing.assert_close(delta.dense(), moved[projection.path], rtol=1e-4, atol=1e-5)


def _randomise(module: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=rng)


def _by_hand(layers: dict[str, Tensor], config: LoraConfig | None) -> dict[str, Tensor]:
    moved = {}
    for name in layers:
        if ".lora_A." in name:
            path = name.split(".lora_A.")[0]
            up, down = layers[name.replace("lora_A", "lora_B")].double(), layers[name].double()
            alpha = config.alpha_pattern.get(path, config.lora_alpha) if config else len(down)
            moved[path] = alpha / len(down) * (up @ down)
    return moved


@pytest.mark.parametrize(
    "ending",
    [
        ("unet.{path}.lora.up.weight", "unet.{path}.lora.down.weight"),
        ("unet.{processor}_lora.up.weight", "unet.{processor}_lora.down.weight"),
        ("{processor}_lora.up.weight", "{processor}_lora.down.weight"),
        ("{path}.lora_B.weight", "{path}.lora_A.weight"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_loras_of_older_diffusers_versions_are_read(family, ending, unets, tmp_path):
    tensors, expected = {}, {}
    for path, (up, down) in factors(unets[family], most=1).items():
        names = {"path": path, "processor": path.replace("attn2.to_", "attn2.processor.to_")}
        tensors |= {ending[0].format(**names): up, ending[1].format(**names): down}
        expected[path] = up.double() @ down.double()
    save_file(tensors, tmp_path / "a.safetensors")
    assert_moves(read_lora(tmp_path / "a.safetensors"), expected)


@pytest.mark.parametrize(("family", "by_root"), [("sd15", False), ("sd15", True), ("sd2", False), ("sdxl", False)])
def test_folders_saved_by_peft_are_read(family, by_root, unets, tmp_path):
    unet = unets[family]
    paths = [projection.path for projection in find_projections(unet)][::3]
    patterns = {} if by_root else {"alpha_pattern": {"attn2.to_v": 5}}
    before = {path: unet.get_submodule(path).weight.clone() for path in paths}
    model = peft.get_peft_model(
        unet, LoraConfig(r=3, lora_alpha=7, target_modules=paths, use_rslora=by_root, **patterns)
    )
    _randomise(model)
    model.save_pretrained(str(tmp_path))
    model.merge_adapter()
    moved = {path: unet.get_submodule(path).weight - before[path] for path in paths}
    model.unmerge_adapter()
    model.unload()
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora = read_lora(source)
        assert {projection.path for projection in lora.deltas} == set(paths)
        for projection, delta in lora.deltas.items():
            torch.testing.assert_close(delta.dense(), moved[projection.path], rtol=1e-4, atol=1e-4)
    (tmp_path / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(MuseumError, match=r"adapter_config\.json"):
        read_lora(tmp_path)


def test_names_of_comfyui_and_simpletuner_are_read(unets, tmp_path):
    for family, prefix in (("sd15", "diffusion_model."), ("sdxl", "diffusion_model."), ("sd15", "lycoris_")):
        tensors, expected = {}, {}
        for path, (up, down) in factors(unets[family]).items():
            name = unet_name(f"{path}.weight", 2, set()).removesuffix(".weight")
            name = f"{prefix}{name}" if prefix.endswith(".") else f"{prefix}{path.replace('.', '_')}"
            tensors |= {
                f"{name}.lora_up.weight": up,
                f"{name}.lora_down.weight": down,
                f"{name}.alpha": torch.tensor(2.0),
            }
            expected[path] = 2 / len(down) * (up.double() @ down.double())
        save_file(tensors, tmp_path / "a.safetensors")
        assert_moves(read_lora(tmp_path / "a.safetensors"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype, unets, tmp_path):
    expected = kohya_file(unets["sd15"], "sd15", tmp_path / "a.safetensors", dtype)
    assert_moves(read_lora(tmp_path / "a.safetensors"), expected)
