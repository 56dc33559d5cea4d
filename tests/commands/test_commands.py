"""The commands as a person types them, on the built-in model, with few steps."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from clora_core.cli import main
from clora_core.errors import MuseumError
from clora_core.learning.learn import Learning
from clora_core.learning.state import LearningState, save_state
from clora_core.method.recipe import BASELINES, DEFAULT_METHOD, RECIPES, recipe_named
from clora_core.model.concept import Concept
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum, parse_strengths
from clora_core.over_diffusers.base import open_base
from clora_core.picture_files import read_folder
from tests.museums import museum
from tests.small import taught

ROOT = Path(__file__).parents[2]
FEW = ["--steps", "2", "--rank", "2", "--batch-size", "2"]


def teach(museum, images, word, *more):
    options = ["--base", "starter", "--museum", str(museum), "--word", word, "--images", str(images), *FEW]
    return main(["learn", *options, *more])


def test_learn_view_show_and_export(tmp_path, images, capsys):
    museum = tmp_path / "my.museum.safetensors"
    assert teach(museum, images, "<ada>") == 0
    assert teach(museum, images, "<eve>", "--schedule", "cosine", "--flip") == 0
    assert load_museum(museum).words == ("<ada>", "<eve>")

    out = tmp_path / "view.png"
    model = ["--base", "starter", "--museum", str(museum)]
    view = ["view", *model, "--prompt", "<ada> and <eve> at night", "--count", "2", "--steps", "2"]
    assert main([*view, "--out", str(out)]) == 0
    assert Image.open(out).size == (128, 64)
    pictures = []
    for guidance in ([], ["--guidance", "5"], ["--guidance", "0"]):
        assert main([*view, "--out", str(out), *guidance]) == 0
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1] != pictures[2], "0 is a number too"

    capsys.readouterr()
    assert main(["view", *model, "--prompt", "<ada> and <eev>", "--count", "1", "--steps", "1", "--out", str(out)]) == 0
    assert "The museum does not show <eev>. Did you mean <eve>?" in capsys.readouterr().out
    assert main(["show", str(museum), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [exhibit["word"] for exhibit in shown["exhibits"]] == ["<ada>", "<eve>"]
    assert shown["exhibits"][1]["recipe"]["schedule"] == "cosine" and shown["exhibits"][1]["facts"]["pictures"] == 3
    assert main(["show", str(museum)]) == 0
    assert "overlap" in capsys.readouterr().out

    assert main(["export", str(museum), "--to", str(tmp_path / "exported")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split("\n") if line]
    assert len(written) >= 3 and all(path.is_file() for path in written)


def test_the_same_commands_give_the_same_museum(tmp_path, images):
    deltas = []
    for name in ("a", "b"):
        museum = tmp_path / f"{name}.safetensors"
        teach(museum, images, "<ada>")
        deltas.append(load_museum(museum).dense())
    assert all(torch.equal(deltas[0][projection], deltas[1][projection]) for projection in deltas[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--word", "7"], "7"),
        (["--images", "nowhere"], "nowhere"),
        (["--base", "nowhere"], "nowhere"),
        (["--rank", "-1"], "rank"),
        (["--museum", "nowhere/m.safetensors"], "nowhere"),
        (["--museum", "museum.ckpt"], "safetensors"),
        (["--forgetting-lambda", "1e8"], "add --recipe c-lora"),
        (["--recipe", "clora"], "no recipe 'clora'"),
    ],
)
def test_wrong_input_is_refused_before_training(tmp_path, images, capsys, change, said):
    assert teach(tmp_path / "m.safetensors", images, "<ada>", *change) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") <= 2
    assert not list(tmp_path.glob("*.safetensors"))


def test_baseline_is_accepted_and_labeled(tmp_path, images, capsys):
    for recipe, said in (("c-lora", False), ("ewc", True)):
        assert teach(tmp_path / f"{recipe}.safetensors", images, "<ada>", "--recipe", recipe) == 0
        assert (f"{recipe} is a baseline, kept for comparison." in capsys.readouterr().out) == said
        (exhibit,) = load_museum(tmp_path / f"{recipe}.safetensors").exhibits
        assert exhibit.recipe.regularizers == recipe_named(recipe).regularizers


@pytest.mark.parametrize("command", ["learn", "demo"])
def test_help_lists_recipes_but_no_baselines(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    output = " ".join(capsys.readouterr().out.rpartition("--recipe NAME")[2].partition("--")[0].split())
    assert f"{', '.join(RECIPES)} ({DEFAULT_METHOD}); or one of the baselines" in output.replace("- ", "-")
    assert not [name for name in BASELINES if f"{name}," in output]


def test_word_cannot_be_learned_twice(tmp_path, images, capsys):
    museum = tmp_path / "m.safetensors"
    teach(museum, images, "<ada>")
    assert teach(museum, images, "<ada>") == 1
    assert "already names exhibit 1" in capsys.readouterr().err


def test_several_words_can_be_learned_jointly(tmp_path, images, capsys):
    """As the engine learns them together; into a new file as into one that holds other words."""
    base, museum, folder = open_base("starter"), tmp_path / "m.safetensors", str(images)
    for word, also in (("<two>", ["<one>"]), ("<five>", ["<three>", "<four>"])):
        assert teach(museum, images, word, *(part for each in also for part in ("--also", each, folder))) == 0
    found = load_museum(museum)
    assert found.words == ("<one>", "<two>", "<three>", "<four>", "<five>")
    assert [exhibit.rank for exhibit in found.exhibits] == [0, 4, 0, 0, 6]
    assert [exhibit.recipe.steps for exhibit in found.exhibits] == [4, 4, 6, 6, 6]
    assert all(exhibit.thumbnail and exhibit.facts["pictures"] == 3 for exhibit in found.exhibits)
    one, two = (
        Concept(word, read_folder(images, resolution_px=64, multiple=8, say=print)[0], vectors=2)
        for word in ("<one>", "<two>")
    )
    alone = taught(base, Museum(base.fingerprint), two, found.exhibits[0].recipe, companions=[one])
    assert all(theirs.same_as(ours) for theirs, ours in zip(alone.exhibits, found.exhibits[:2], strict=True))

    before = museum.read_bytes()
    for word, also, said in (("<six>", "<six>", "its own word"), ("<six>", "<one>", "already names exhibit 1")):
        assert teach(museum, images, word, "--also", also, folder) == 1
        assert said in capsys.readouterr().err
    assert teach(museum, images, "<six>", "--also", "<seven>", folder, "--recipe", "museum-maker") == 1
    assert "style_distillation supports one concept" in capsys.readouterr().err
    assert museum.read_bytes() == before


def test_ctrl_c_keeps_the_progress_and_the_same_command_resumes(tmp_path, images):
    """Interrupted by a real signal and resumed, a museum has the tensors of an uninterrupted one."""
    whole, halves = tmp_path / "whole.safetensors", tmp_path / "halves.safetensors"
    steps = ["--steps", "60"]
    teach(whole, images, "<ada>", *steps)

    options = ["--base", "starter", "--museum", halves, "--word", "<ada>", "--images", images, *FEW, *steps]
    command = [sys.executable, "-m", "clora_core", "learn", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr and process.stdout
    heard = ""
    while not re.search(r"[1-9]\d*/60", heard) and process.poll() is None:
        heard += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, heard + rest
    assert "Stopped at step" in rest and not halves.exists()

    assert teach(halves, images, "<ada>", *steps) == 0
    one, other = load_museum(whole).dense(), load_museum(halves).dense()
    assert all(torch.equal(one[projection], other[projection]) for projection in one)
    assert not list(tmp_path.glob("*.learning.safetensors"))


def test_other_numbers_keep_an_unfinished_state(tmp_path, images, capsys, monkeypatch):
    """A mistyped number does not cost the progress of the intended command."""
    from clora_core.commands import resuming
    from clora_core.commands import training as command

    class Stopped(Learning):
        def run(self, *, report, **options):
            def once(progress):
                report(progress)
                raise KeyboardInterrupt

            return super().run(report=once, **options)

    museum = tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(resuming, "SAVE_EVERY", 1)
        patched.setattr(command, "Learning", Stopped)
        assert teach(museum, images, "<ada>") == 130
        (begun,) = tmp_path.glob("*.learning.safetensors")
        before = begun.read_bytes()
        assert teach(museum, images, "<ada>", "--flip") == 130
        assert f"{begun} holds an unfinished training" in capsys.readouterr().out
        assert len(list(tmp_path.glob("*.learning.safetensors"))) == 2 and begun.read_bytes() == before
    assert teach(museum, images, "<ada>") == 0
    assert "Resuming from step 1" in capsys.readouterr().out
    assert not begun.exists() and len(list(tmp_path.glob("*.learning.safetensors"))) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_damaged_state_is_set_aside_and_training_restarts(tmp_path, images, capsys, monkeypatch, whole):
    """Also an intact one of another training."""
    from clora_core.commands import training as command

    def full(*_, **more):
        raise MuseumError("No space left on device.")

    museum = tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(command, "append_exhibits", full)
        assert teach(museum, images, "<ada>") == 1
    (begun,) = tmp_path.glob("*.learning.safetensors")
    if whole:
        save_state(LearningState("0" * 64, 1, {}, (0.5,)), begun)
    else:
        begun.write_bytes(begun.read_bytes()[:-4] + b"abcd")
    before = begun.read_bytes()
    capsys.readouterr()
    assert teach(museum, images, "<ada>") == 0
    output = capsys.readouterr().out
    assert f"set aside as '{begun.name}.damaged', and the training starts over" in output
    assert begun.with_name(f"{begun.name}.damaged").read_bytes() == before and not begun.exists()
    assert load_museum(museum).words == ("<ada>",)


@pytest.mark.parametrize(
    "command",
    [
        "demo --out out/aux",
        "export m.safetensors --to aux",
        "report --base starter --museum m.safetensors --out out/aux",
        "view --base starter --museum m.safetensors --prompt cat --out con.png",
        "show m.safetensors --sheet con.png",
        "classify view --base starter --museum m.safetensors --json aux.json m.safetensors",
    ],
)
def test_names_that_some_system_forbids_are_refused_first(tmp_path, capsys, monkeypatch, command: str):
    monkeypatch.chdir(tmp_path)
    save_museum(museum("starter"), "m.safetensors")
    assert main(command.split()) == 1
    assert "Windows reserves the name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_learned_exhibit_survives_an_unwritable_file(tmp_path, images, capsys, monkeypatch):
    from clora_core.commands import training as command

    def full(*_, **more):
        raise MuseumError("No space left on device.")

    museum = tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(command, "append_exhibits", full)
        assert teach(museum, images, "<ada>") == 1
    assert teach(museum, images, "<ada>") == 0
    assert "Resuming from step 2" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.learning.safetensors"))


def test_unwritable_state_does_not_stop_training(tmp_path, images, capsys, monkeypatch):
    from clora_core.commands import resuming

    def full(*_, **more):
        raise MuseumError("No space left on device.")

    museum = tmp_path / "m.safetensors"
    monkeypatch.setattr(resuming, "save_state", full)
    assert teach(museum, images, "<ada>") == 0
    assert "up to step 2 could not be saved: No space left" in capsys.readouterr().out
    assert load_museum(museum).words == ("<ada>",)


def test_museum_created_meanwhile_is_extended(tmp_path, images, monkeypatch):
    from clora_core.museum.file import saving

    museum = tmp_path / "m.safetensors"

    def late(new, path):
        with monkeypatch.context() as undone:
            undone.setattr(saving, "save_museum", save_museum)
            assert teach(museum, images, "<bo>") == 0
        return save_museum(new, path)

    monkeypatch.setattr(saving, "save_museum", late)
    assert teach(museum, images, "<ada>") == 0
    assert load_museum(museum).words == ("<bo>", "<ada>")


def test_system_errors_are_clear(tmp_path, images, capsys):
    museum = tmp_path / "m.safetensors"
    assert teach(museum, images, "<ada>", "--device", "gpu") == 1
    assert "The device 'gpu' cannot be used" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert teach(museum, images, "<ada>", "--device", "cuda") == 1
        assert "The device 'cuda' cannot be used" in capsys.readouterr().err
    assert teach(museum, images, "<ada>") == 0
    assert main(["export", str(museum), "--to", str(museum)]) == 1
    assert "exists" in capsys.readouterr().err


def test_out_of_memory_in_a_step_keeps_the_progress_and_goes_on_with_less(tmp_path, images, capsys, monkeypatch):
    """Memory is full at the third step. What the user left open becomes smaller by itself."""
    from clora_core.commands import learn as command

    opened, calls = command.open_chosen, []

    def fill(*inputs):
        calls.append(1)
        if len(calls) == 3:
            torch.empty(2**50)

    def opened_with_little_memory(arguments):
        base = opened(arguments)
        base.unet.register_forward_pre_hook(fill)
        return base

    steps, whole, museum = ["--steps", "4"], tmp_path / "whole.safetensors", tmp_path / "m.safetensors"
    assert teach(whole, images, "<ada>", *steps) == 0
    monkeypatch.setattr(command, "open_chosen", opened_with_little_memory)
    assert teach(museum, images, "<ada>", *steps) == 0
    said = capsys.readouterr().out
    assert "Out of memory at step 3 with fp32, batch 2. It goes on with less:" in said
    assert "fp32, batch 2, checkpointing" in said and "Resuming from step 2" in said
    one, other = load_museum(whole).dense(), load_museum(museum).dense()
    assert all(torch.allclose(one[projection], other[projection], rtol=1e-3, atol=1e-5) for projection in one)

    calls.clear()
    assert teach(museum, images, "<eve>", *steps, "--checkpointing") == 1
    assert "at step 3. Set batch_size to 1 and accumulation to 2: training then starts over" in capsys.readouterr().err
    assert teach(museum, images, "<eve>", *steps, "--checkpointing") == 0
    assert "Resuming from step 2" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.learning.safetensors"))


def test_out_of_memory_outside_of_a_step_suggests_savings(tmp_path, images, capsys, monkeypatch):
    from clora_core.commands import training as command

    monkeypatch.setattr(command.Learning, "run", lambda *inputs, **named: torch.empty(2**50))
    assert teach(tmp_path / "m.safetensors", images, "<ada>") == 1
    assert "--checkpointing" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--strength", "nan"], ["--strength", "1e9"], ["--count", "0"]])
def test_invalid_view_options_are_refused(wrong, tmp_path, capsys):
    out = tmp_path / "view.png"
    view = ["view", "--base", "starter", "--museum", "none.safetensors", "--prompt", "a cat", "--out", str(out)]
    assert main([*view, *wrong]) == 1
    assert wrong[0] in capsys.readouterr().err and not out.exists()


def test_missing_output_folder_is_refused_before_sampling(tmp_path, capsys):
    view = ["view", "--base", "starter", "--museum", "none.safetensors", "--prompt", "a cat"]
    assert main([*view, "--out", str(tmp_path / "nowhere" / "view.png")]) == 1
    assert "There is no folder" in capsys.readouterr().err


def test_unwritable_report_is_refused_before_sampling(tmp_path, capsys):
    save_museum(museum("starter"), tmp_path / "m.safetensors")
    report = ["report", "--base", "none", "--museum", str(tmp_path / "m.safetensors")]
    assert main([*report, "--out", str(tmp_path / "m.safetensors")]) == 1
    assert "cannot be created" in capsys.readouterr().err


def test_characters_missing_in_the_output_encoding_are_escaped():
    """As a pipe on Windows does."""
    command = [sys.executable, "-m", "clora_core", "learn", "--help"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert output.returncode == 0 and b"the paper's ?" in output.stdout


def test_exhibits_can_be_chosen_with_a_strength():
    assert parse_strengths(["<a>", "<b>:0.5"]) == {"<a>": 1.0, "<b>": 0.5}
    with pytest.raises(MuseumError, match="<b>:much"):
        parse_strengths(["<b>:much"])


def test_every_command_has_help(capsys):
    for command in ("demo", "learn", "view", "show", "edit", "import", "export", "bench", "bench step"):
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), "--help"])
        assert stopped.value.code == 0
        assert len(capsys.readouterr().out) > 200, command


def test_museum_commands_need_no_diffusers(tmp_path):
    """As in a ComfyUI that lacks it."""
    path = tmp_path / "m.museum.safetensors"
    save_museum(museum(), path)
    blocked = "import sys; sys.modules.update(diffusers=None, transformers=None); from clora_core.cli import main; "

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", f"{blocked}sys.exit(main(sys.argv[1:]))", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    shown = run("show", str(path))
    assert shown.returncode == 0 and "<ink>" in shown.stdout
    exported = run("export", str(path), "--to", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr
    refused = run("view", "--base", "starter", "--museum", str(path), "--prompt", "<ink>", "--out", "a.png")
    assert refused.returncode == 1 and "needs diffusers" in refused.stderr
