"""`learn` in several processes: the same museum as in one, also after Ctrl-C and with another number of processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clora_core.cli import main
from clora_core.errors import RecipeError
from clora_core.learning.processes import Processes
from clora_core.museum.file import load_museum
from clora_core.museum.museum import Museum
from tests.small import same_bits, tensors_of

STEPS = 24
ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def learn(museum: Path, images: Path) -> list[str]:
    """Three batches per update, so that two processes have different numbers of them."""
    return [
        *("-m", "clora_core", "learn", "--base", "starter", "--museum", str(museum), "--word", "<ada>"),
        *("--images", str(images), "--steps", str(STEPS), "--batch-size", "2", "--accumulation", "3"),
    ]


def learn_list(museum: Path, images: Path, *more: str) -> list[str]:
    """Two concepts from the pictures of one folder."""
    concepts = museum.with_suffix(".json")
    entries = [{"word": f"<{name}>", "images": str(images), "token_seed": seed} for seed, name in enumerate("ab")]
    concepts.write_text(json.dumps(entries))
    options = ["--base", "starter", "--museum", str(museum), "--list", str(concepts), "--steps", str(STEPS)]
    return ["-m", "clora_core", "learn", *options, "--batch-size", "2", *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def stopped_after_a_step(command: list[str]) -> str:
    """Run the command, press Ctrl-C once in its terminal, and return what it printed."""
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    printed, until = b"", time.monotonic() + 240
    while (
        not re.search(rb" [1-9]\d*/%d" % STEPS, printed)
        and time.monotonic() < until
        and (part := process.stdout.read1())
    ):
        printed += part
    os.killpg(process.pid, signal.SIGINT)
    return (printed + process.communicate(timeout=120)[0]).decode()


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal sends Ctrl-C to all its processes")
def test_two_processes_learn_what_one_does(tmp_path, images):
    one, two = tmp_path / "one.museum.safetensors", tmp_path / "two.museum.safetensors"
    subprocess.run([sys.executable, *learn(one, images)], env=environment(), check=True, capture_output=True)
    printed = stopped_after_a_step([*TORCHRUN, *learn(two, images)])
    assert "The same command resumes" in printed and printed.count("3 pictures in") == 1, printed
    assert not two.exists() and list(tmp_path.glob("two*.learning.safetensors"))
    again = subprocess.run([sys.executable, *learn(two, images)], env=environment(), check=True, capture_output=True)
    assert b"Resuming from step" in again.stdout
    (expected,), (found,) = load_museum(one).exhibits, load_museum(two).exhibits
    for projection, delta in expected.deltas.items():
        torch.testing.assert_close(found.deltas[projection].dense(), delta.dense(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.token.vectors["clip_l"], expected.token.vectors["clip_l"], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal sends Ctrl-C to all its processes")
def test_two_processes_learn_independent_concepts_of_a_list_apart(tmp_path, images):
    """Each its own, and the museum is that of one process, bit for bit, in the list's order; also after Ctrl-C."""
    one, two = tmp_path / "one.museum.safetensors", tmp_path / "two.museum.safetensors"
    gated = "--recipe", "word-gated"
    assert main(learn_list(one, images, *gated)[2:]) == 0
    printed = stopped_after_a_step([*TORCHRUN, *learn_list(two, images, *gated)])
    assert "The same command resumes" in printed and not two.exists(), printed
    assert list(tmp_path.glob("two*.learning.safetensors"))
    again = [*TORCHRUN, *learn_list(two, images, *gated)]
    printed = subprocess.run(again, env=environment(), check=True, capture_output=True, text=True).stdout
    assert "Resuming from step" in printed and printed.count("now holds: <a>, <b>") == 1, printed
    assert load_museum(one).words == load_museum(two).words and same_bits(load_museum(one), load_museum(two))
    assert not list(tmp_path.glob("two*.lear*.safetensors"))


def test_two_processes_share_the_batches_of_dependent_concepts_of_a_list(tmp_path, images):
    one, two = tmp_path / "one.museum.safetensors", tmp_path / "two.museum.safetensors"
    shared = "--recipe", "c-lora", "--accumulation", "2", "--steps", "2"
    assert main(learn_list(one, images, *shared)[2:]) == 0
    command = [*TORCHRUN, *learn_list(two, images, *shared)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    assert load_museum(one).words == load_museum(two).words
    assert_close(load_museum(one), load_museum(two))


def assert_close(expected: Museum, found: Museum) -> None:
    tensors = tensors_of(found)
    for name, tensor in tensors_of(expected).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_process_needs_a_batch():
    assert [list(Processes(number, 2).own(3)) for number in (0, 1)] == [[0, 2], [1]]
    with pytest.raises(RecipeError, match=r"accumulation is 1\. Set it to at least 2"):
        Processes(0, 2).own(1)


def test_other_commands_are_refused_in_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["show", "any.museum.safetensors"]) == 1
    assert "Only `learn` runs in several processes" in capsys.readouterr().err
