"""ComfyUI on another device than the CPU: what these tests ask holds there as well."""

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
    "test_base.py::test_the_layer_that_the_user_chose_is_read",
    "test_gates.py",
    "test_identity.py",
    "test_layers.py",
    "test_nodes.py::test_a_step_teaches_in_every_family",
    "test_nodes.py::test_the_same_step_again_comes_from_the_disk",
    "test_view.py::test_a_view_of_the_starter_is_the_one_over_diffusers",
    "test_view.py::test_a_view_is_recognised_extended_and_taken_off",
    *(f"test_view.py::test_what_is_shown_is_what_the_engine_attaches[torch.{dtype}-small]" for dtype in SHOWN),
    "test_words.py",
)
ASKED = (
    "test_base.py::test_everything_is_trained_in_every_family",
    "test_base.py::test_the_layer_that_the_user_chose_is_read",
    "test_gates.py",
    "test_layers.py",
    "test_nodes.py::test_a_step_teaches_in_every_family",
    "test_view.py::test_a_view_of_the_starter_is_the_one_over_diffusers",
    "test_view.py::test_loading_in_part_loses_nothing",
    "test_words.py",
)


def test_there_it_does_the_same():
    passes_with(["on_second_device"], ASKED)


def test_there_it_does_the_same_where_weights_come_page_by_page():
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
