"""The saved state of an unfinished learning."""

import json
import random

import pytest
import torch

from clora_core.errors import MuseumError
from clora_core.learning.state import LearningState, load_state, save_state
from clora_core.museum.file import save_museum
from tests.museums import museum, put_together, replace_somewhere, taken_apart


def state(step: int = 3) -> LearningState:
    rng = torch.Generator().manual_seed(step)
    tensors = {
        "trained.down_blocks.0.attentions.0.up": torch.randn(4, 2, generator=rng),
        "trained.token.clip_l": torch.randn(1, 2, 768, generator=rng),
        "optimizer.first.0": torch.randn(5, generator=rng).bfloat16(),
        "optimizer.step": torch.tensor(step),
        "optimizer.exact": torch.randn(3, generator=rng).double(),
        "optimizer.empty": torch.zeros(0, 3),
        "optimizer.seen": torch.tensor([True, False, True]),
        "optimizer.half": torch.randn(7, generator=rng).half(),
    }
    return LearningState("0f" * 32, step, tensors, tuple(1 / (i + 3) for i in range(step)))


def test_a_state_is_loaded_bit_for_bit(tmp_path):
    before = state()
    save_state(before, tmp_path / "a.safetensors")
    after = load_state(tmp_path / "a.safetensors")
    assert (after.key, after.step, after.losses) == (before.key, before.step, before.losses)
    assert set(after.tensors) == set(before.tensors)
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype
        assert torch.equal(after.tensors[name], tensor)


def test_a_later_state_replaces_the_earlier_one(tmp_path):
    for step in (1, 2):
        save_state(state(step), tmp_path / "a.safetensors")
    assert load_state(tmp_path / "a.safetensors").step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_parameter_that_requires_gradients_can_be_saved(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, 3).T)
    save_state(LearningState("key", 0, {"a": parameter}), tmp_path / "a.safetensors")
    assert torch.equal(load_state(tmp_path / "a.safetensors").tensors["a"], parameter)


def test_a_museum_is_refused_as_a_state(tmp_path):
    save_museum(museum(), tmp_path / "a.safetensors")
    with pytest.raises(MuseumError, match="not a clora-learning-state"):
        load_state(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("key", 1),
        ("step", -1),
        ("step", True),
        ("step", 1.0),
        ("losses", 3),
        ("losses", ["1"]),
        ("losses", [None]),
        ("x", 1),
    ],
)
def test_an_inconsistent_state_is_refused(entry, value, tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(state(), path)
    header, data = taken_apart(path)
    inner = json.loads(header["__metadata__"]["clora.state"]) | {entry: value}
    header["__metadata__"]["clora.state"] = json.dumps(inner)
    put_together(path, header, data)
    with pytest.raises(MuseumError, match=r"a\.safetensors"):
        load_state(path)


def test_a_state_that_cannot_be_stored_is_refused(tmp_path):
    for broken in (
        LearningState("key", 0, {"__metadata__": torch.ones(1)}),
        LearningState("key", 0, {"a": torch.ones(1, dtype=torch.complex64)}),
        LearningState("key", 1, {}, (float("nan"),)),
    ):
        with pytest.raises(MuseumError):
            save_state(broken, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_corrupted_states_raise_only_museum_errors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(state(), path)
    raw = path.read_bytes()
    header, data = taken_apart(path)
    for seed in range(100):
        rng = random.Random(seed)
        if rng.random() < 0.5:
            path.write_bytes(raw[: rng.randrange(len(raw))])
        else:
            changed = json.loads(json.dumps(header))
            replace_somewhere(changed, rng)
            put_together(path, changed, data)
        try:
            load_state(path)
        except MuseumError as error:
            assert str(error).startswith("a.safetensors")


def test_a_flipped_bit_is_detected_or_has_no_effect(tmp_path):
    path, before, rng = tmp_path / "a.safetensors", state(), random.Random(0)
    save_state(before, path)
    raw, detected = path.read_bytes(), 0
    for _ in range(200):
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            after = load_state(path)
        except MuseumError:
            detected += 1
        else:
            assert (after.key, after.step, after.losses) == (before.key, before.step, before.losses)
            assert set(after.tensors) == set(before.tensors)
            assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert detected > 190
