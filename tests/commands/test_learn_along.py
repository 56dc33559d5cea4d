"""`learn`: what it writes during training, how a training continues, and automatic numbers."""

import re
from dataclasses import replace
from itertools import groupby

import pytest
from PIL import Image

from clora_core.museum.file import load_museum, save_museum
from tests.interrupting import press_ctrl_c_in_bar

from .test_commands import teach


def test_more_steps_continue_and_replace_the_last_word(tmp_path, images, capsys):
    """As in one training; the museums kept on the way can be viewed like any other."""
    numbers = ["--schedule", "constant"]
    museum, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"
    assert teach(museum, images, "<ada>", *numbers) == 0
    assert teach(museum, images, "<ada>", *numbers, "--steps", "4", "--replace", "--keep-every", "3") == 0
    assert "Resuming from step 2." in capsys.readouterr().out
    assert teach(whole, images, "<ada>", *numbers, "--steps", "4") == 0
    (longer,), (once,) = load_museum(museum).exhibits, load_museum(whole).exhibits
    assert longer.same_as(once) and longer.recipe == once.recipe
    (along,) = load_museum(tmp_path / "m.ada-3.safetensors").exhibits
    assert along.recipe.steps == 3 and not along.same_as(once)
    assert len(list(tmp_path.glob("m.*.backup"))) == 1

    assert teach(museum, images, "<eve>", *numbers) == 0
    assert teach(museum, images, "<ada>", *numbers, "--replace") == 1
    assert "<eve> was learned after <ada>" in capsys.readouterr().err
    assert load_museum(museum).words == ("<ada>", "<eve>")


@pytest.mark.parametrize(("bar", "left"), [(1, 0), (2, 1)], ids=["before the first step", "after the last step"])
def test_ctrl_c_is_heard_while_prompts_are_read(tmp_path, images, capsys, monkeypatch, bar: int, left: int):
    """The same command then goes on, with the tensors of an uninterrupted training."""
    museum, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"
    with monkeypatch.context() as patched:
        press_ctrl_c_in_bar(patched, bar)
        assert teach(museum, images, "<ada>") == 130
    assert "Stopped while reading. The same command continues." in capsys.readouterr().err
    assert not museum.exists() and len(list(tmp_path.glob("*.learning.safetensors"))) == left
    assert teach(museum, images, "<ada>") == teach(whole, images, "<ada>") == 0
    assert load_museum(museum).exhibits[0].same_as(load_museum(whole).exhibits[0])


def test_automatic_numbers_fit_the_model_and_are_reported(tmp_path, images, capsys):
    assert teach(tmp_path / "m.safetensors", images, "<ada>", "--precision", "auto", "--vectors", "auto") == 0
    shown = capsys.readouterr()
    told = r"starter on \d+ GB: fp32, batch 2; rank 2, 2 steps, learning rate 0.006 \(word 0.05\)\."
    assert re.search(told, shown.out)
    bars = [title for title, _ in groupby(re.findall(r"reading prompts|<ada>(?=:)", shown.err))]
    assert bars == ["<ada>", "reading prompts"] * 2, "prompts are read before the first update and after the last"
    (exhibit,) = load_museum(tmp_path / "m.safetensors").exhibits
    assert exhibit.token.words == 2 and exhibit.recipe.learning_rate == 6e-3


def test_previews_and_a_summary_are_written(tmp_path, images, capsys):
    museum = tmp_path / "m.safetensors"
    assert teach(museum, images, "<ada>") == 0
    output = capsys.readouterr().out
    assert re.search(r"^Loss on its own pictures: \d\.\d{3} before, \d\.\d{3} after\.$", output, re.M)
    assert "Earlier words" not in output and not list(tmp_path.glob("*.png"))

    assert teach(museum, images, "<eve>", "--steps", "3", "--preview-every", "2") == 0
    output = capsys.readouterr().out
    assert re.search(r"^Earlier words moved by [\d.]+% \(0% is unchanged\); most: <ada>, [\d.]+%\.$", output, re.M)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["m.eve-0000.png", "m.eve-0002.png", "m.eve.png"]
    assert Image.open(tmp_path / "m.eve-0000.png").size == (64, 64)
    sheet = Image.open(tmp_path / "m.eve.png")
    assert sheet.width > 3 * 128 and sheet.height > 2 * 128, "two exhibits, three pictures of each"


def test_missing_thumbnail_or_unwritable_preview_does_not_stop_learning(tmp_path, images, capsys):
    museum = tmp_path / "m.safetensors"
    assert teach(museum, images, "<ada>") == 0
    (ada,) = (whole := load_museum(museum)).exhibits
    save_museum(replace(whole, exhibits=(replace(ada, thumbnail=b""),)), museum, overwrite=True)
    (tmp_path / "m.eve-0000.png").mkdir()  # in the way
    assert teach(museum, images, "<eve>", "--preview-every", "2") == 0
    assert "cannot be written to" in capsys.readouterr().out
    assert (tmp_path / "m.eve.png").is_file() and load_museum(museum).words == ("<ada>", "<eve>")
