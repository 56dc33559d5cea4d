"""What LoRA managers find in a museum file and in an exported one, by their own rules."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clora_core.museum.file import append_exhibits, export_lora, save_museum
from clora_core.museum.museum import Museum
from tests.museums import exhibit, museum, projections, taken_apart

ARCHITECTURES = ("starter", "sd15", "sd2", "sdxl")


def metadata_of(path: Path) -> dict[str, str]:
    return taken_apart(path)[0]["__metadata__"]


def as_kohya_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """sd-scripts, library/train_util.py: the tensors saved with the `ss_` facts alone, hashed from the data on."""
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    raw = safetensors.torch.save(dict(tensors), kept)
    return hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()


def as_a_webui_reads(metadata: Mapping[str, str]) -> dict[str, object]:
    """modules/sd_models.py: values that look like JSON objects are parsed."""
    return {key: json.loads(value) if value.startswith("{") else value for key, value in metadata.items()}


def version_in_forge(facts: Mapping[str, object]) -> str:
    """Forge, extensions-builtin/sd_forge_lora/network.py, detect_version; A1111 asks the second and the third."""
    if facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora":
        return "SDXL"
    if str(facts["ss_base_model_version"]).startswith("sdxl_"):
        return "SDXL"
    if facts["ss_v2"] == "True":
        return "SD2"
    return "SD1" if facts["modelspec.architecture"] == "stable-diffusion-v1/lora" else "unknown"


def base_in_lora_manager(version: str) -> str:
    """ComfyUI-Lora-Manager, py/utils/model_utils.py: the first of its names that is part of the version."""
    names = {"sd_1.5": "SD 1.5", "sd-v1-5": "SD 1.5", "sd-v2-1": "SD 2.1", "sdxl": "SDXL 1.0", "sd-v2": "SD 2.0"}
    return next((name for part, name in names.items() if part in version.lower()), version)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_hash_equals_that_of_kohya_civitai_and_the_webuis(architecture, dtype, tmp_path):
    whole = museum(architecture)
    path = tmp_path / "a.safetensors"
    save_museum(whole.only(whole.words[:-1]), path, dtype=dtype)
    append_exhibits([whole.exhibits[-1]], path, base=whole.base)
    facts = metadata_of(path)
    assert facts["sshs_model_hash"] == hashlib.sha256(taken_apart(path)[1]).hexdigest()
    assert facts["sshs_model_hash"] == as_kohya_hashes(safetensors.torch.load_file(path), facts)
    assert facts["modelspec.hash_sha256"] == f"0x{facts['sshs_model_hash']}"


def test_the_hash_depends_on_the_tensors_only(tmp_path):
    """It does not depend on the name of the file or on prompts; also in an exported file."""
    one, other, reworded, moved = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "reworded", "moved"))
    save_museum(museum(), one)
    save_museum(museum(), other)
    first = museum().exhibits[0]
    save_museum(replace(museum(), exhibits=(replace(first, prompt="a cat"), *museum().exhibits[1:])), reworded)
    first.token.vectors["clip_l"][0, 0, 0] += 1
    save_museum(replace(museum(), exhibits=(first, *museum().exhibits[1:])), moved)
    hashes = [metadata_of(path)["sshs_model_hash"] for path in (one, other, reworded, moved)]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]
    export_lora(museum(), tmp_path / "plain.safetensors")
    plain = metadata_of(tmp_path / "plain.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "plain.safetensors")
    assert plain["sshs_model_hash"] == as_kohya_hashes(tensors, plain)


@pytest.mark.parametrize(
    ("architecture", "in_forge", "in_lora_manager"),
    [("sd15", "SD1", "SD 1.5"), ("sd2", "SD2", "sd_v2"), ("sdxl", "SDXL", "SDXL 1.0")],
)
def test_managers_recognize_the_base(architecture, in_forge, in_lora_manager, tmp_path):
    save_museum(museum(architecture), tmp_path / "a.safetensors")
    facts = as_a_webui_reads(metadata_of(tmp_path / "a.safetensors"))
    assert version_in_forge(facts) == in_forge
    assert base_in_lora_manager(str(facts["ss_base_model_version"])) == in_lora_manager


def test_managers_find_words_numbers_and_dates(tmp_path):
    save_museum(museum(), tmp_path / "zoo.safetensors")
    facts = metadata_of(tmp_path / "zoo.safetensors")
    assert all(isinstance(value, str) for value in facts.values())
    assert facts["ss_network_module"] == "networks.lora"
    assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == ("12", "12.0")  # 4 + 3 + 5, the widest projection
    assert facts["ss_output_name"] == facts["modelspec.title"] == "zoo"
    assert facts["ss_steps"] == str(sum(each.recipe.steps for each in museum().exhibits))
    assert facts["ss_num_train_images"] == "5" and facts["ss_seed"] == "0"
    assert facts["modelspec.trigger_phrase"] == "<my-cat>, <ink>, <bär>, lonely"
    assert facts["modelspec.date"] == "2024-05-06"
    read = as_a_webui_reads(facts)
    assert sum(int(each["img_count"]) for each in read["ss_dataset_dirs"].values()) == 5  # type: ignore[attr-defined]
    (words,) = read["ss_tag_frequency"].values()  # type: ignore[attr-defined]
    assert words == {"<my-cat>": 5, "<ink>": 1, "<bär>": 1, "lonely": 1}


def test_an_empty_museum_has_metadata_for_managers(tmp_path):
    save_museum(Museum(museum().base), tmp_path / "a.safetensors")
    facts = metadata_of(tmp_path / "a.safetensors")
    assert (facts["ss_network_dim"], facts["ss_num_train_images"]) == ("0", "0")
    assert facts["sshs_model_hash"] == hashlib.sha256(b"").hexdigest()


def test_facts_of_the_wrong_type_are_ignored(tmp_path):
    odd = exhibit("<x>", projections("sd15"), seed=1, facts={"pictures": "five", "date": 7})
    save_museum(Museum(museum().base, (odd,)), tmp_path / "a.safetensors")
    facts = metadata_of(tmp_path / "a.safetensors")
    assert facts["ss_num_train_images"] == "0" and "modelspec.date" not in facts
