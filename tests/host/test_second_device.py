"""ComfyUI on another device than the CPU: these tests pass there too."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import comfy.model_patcher
import pytest

from .finding import ROOT

pytestmark = pytest.mark.usefixtures("devices_in_python")
HERE = Path(__file__).parent
SHOWN = ("float32", "float16", "bfloat16", "float8_e4m3fn")
PAGED = (
    "test_base.py::test_clip_set_last_layer_chooses_the_layer",
    "test_gates.py",
    "test_identity.py",
    "test_layers.py",
    "test_nodes.py::test_train_step_works_in_every_family",
    "test_nodes.py::test_identical_step_is_read_from_disk",
    "test_view.py::test_view_of_the_starter_matches_diffusers",
    "test_view.py::test_view_is_recognized_extended_and_removed",
    *(f"test_view.py::test_view_predicts_as_the_engine[torch.{dtype}-small]" for dtype in SHOWN),
    "test_words.py",
)
TESTS = (
    "test_base.py::test_all_parameters_are_trained_in_every_family",
    "test_base.py::test_clip_set_last_layer_chooses_the_layer",
    "test_gates.py",
    "test_layers.py",
    "test_nodes.py::test_train_step_works_in_every_family",
    "test_view.py::test_view_of_the_starter_matches_diffusers",
    "test_view.py::test_partially_loaded_model_shows_the_whole_museum",
    "test_words.py",
)
UNLOADED = (
    "test_frozen_token.py::test_the_text_encoder_rests_while_the_word_is_learned_and_the_phrase_shows_it[sd15]",
    "test_nodes.py::test_identical_step_is_read_from_disk",
)


def test_tests_pass_on_a_second_device():
    passes_with(["on_second_device"], TESTS)


def test_tests_pass_on_a_second_device_without_smart_memory():
    passes_with(["on_second_device", "without_smart_memory"], UNLOADED)


def test_tests_pass_on_a_second_device_with_paged_weights():
    paged = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)
    if not hasattr(paged, "get_non_dynamic_delegate"):
        pytest.skip("this ComfyUI pages no weights in and out")
    passes_with(["on_second_device", "on_paged_device"], PAGED)


def passes_with(plugins: Sequence[str], asked: Sequence[str]) -> None:
    """In a process of its own, since torch takes the device for this process's accelerator from then on."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    for plugin in plugins:
        command += ["-p", f"tests.host.{plugin}"]
    ran = subprocess.run([*command, *(str(HERE / name) for name in asked)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-10_000:] + ran.stderr[-2_000:]
    assert " passed" in ran.stdout and "failed" not in ran.stdout
