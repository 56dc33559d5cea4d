"""Which folders of vision transformers open, and which are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clora_core.classification.learn import TaskLearning
from clora_core.classification.museum import TaskMuseum
from clora_core.classification.vision import STARTER_FOLDER, Vision, open_vision
from clora_core.errors import BaseModelError
from clora_core.model.attach import attached
from clora_core.pictures import as_floats
from tests.classification.tasks import pictures, recipe


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "clip"])
def test_folders_of_transformers_open_and_learn(kind: str, tmp_path: Path):
    import transformers as t

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    model = {
        "vit": lambda: t.ViTModel(t.ViTConfig(**small)),
        "deit": lambda: t.DeiTModel(t.DeiTConfig(**small)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**small)),
        "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**small)),
    }[kind]()
    model.save_pretrained(tmp_path)
    base = open_vision(tmp_path)
    assert (base.width, base.side, len(base.slots)) == (32, 32, 6)
    task = pictures("red", "green")
    task = dataclasses.replace(task, pictures=task.pictures[..., :32, :32])
    museum = TaskMuseum(base.fingerprint).with_task(
        TaskLearning(base, TaskMuseum(base.fingerprint), task, recipe(head="linear")).run()
    )
    with torch.no_grad(), attached(base, museum.dense()):
        moved = base.features(as_floats(task.pictures))
        whole = model.eval()(pixel_values=as_floats(task.pictures))
    expected = whole.pooler_output if kind == "clip" else whole.last_hidden_state[:, 0]
    torch.testing.assert_close(base.features(as_floats(task.pictures)), expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(moved, base.features(as_floats(task.pictures)))
    again = open_vision(tmp_path)
    assert again.fingerprint == base.fingerprint and museum.check_over(again) is None


def test_a_folder_of_another_model_is_refused(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"config\.json"):
        open_vision(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BaseModelError, match="'bert'"):
        open_vision(tmp_path)
    for content in ("{", "[]", '{"model_type": []}', '{"model_type": "vit"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BaseModelError):
            open_vision(tmp_path)


def test_any_difference_of_the_network_changes_the_fingerprint(vision: Vision, tmp_path: Path):
    assert starter_copy(tmp_path / "weights", other=True).fingerprint != vision.fingerprint
    assert starter_copy(tmp_path / "mean", image_mean=[0.4, 0.5, 0.5]).fingerprint != vision.fingerprint
    assert starter_copy(tmp_path / "same").fingerprint == vision.fingerprint


def starter_copy(folder: Path, *, other: bool = False, **preparation: object) -> Vision:
    """The starter in another folder; other: with another weight outside the attention."""
    shutil.copytree(STARTER_FOLDER, folder)
    weights = load_file(folder / "model.safetensors")
    if other:
        name = next(name for name in weights if name.endswith("layernorm.bias"))
        weights[name] = weights[name] + 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "preprocessor_config.json").read_text()) | preparation
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return open_vision(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    shutil.copytree(STARTER_FOLDER, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    broken = {name: value.fill_(float("nan")) if "layernorm" in name else value for name, value in weights.items()}
    save_file(broken, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="not finite"):
        open_vision(tmp_path / "m")


def test_a_config_with_fewer_layers_than_the_weights_is_refused(tmp_path: Path):
    shutil.copytree(STARTER_FOLDER, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="more layers"):
        open_vision(tmp_path / "m")
