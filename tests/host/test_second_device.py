"""ComfyUI on another device than the CPU: what these tests ask holds there as well."""

import subprocess
import sys
from pathlib import Path

import pytest

from .finding import ROOT

HERE = Path(__file__).parent
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


@pytest.mark.usefixtures("devices_in_python")
def test_there_it_does_the_same():
    """In a process of its own, since torch takes the device for this process's accelerator from then on."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.host.on_second_device", "-p", "no:cacheprovider"]
    ran = subprocess.run([*command, *(str(HERE / name) for name in ASKED)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-10_000:] + ran.stderr[-2_000:]
    assert " passed" in ran.stdout and "failed" not in ran.stdout
