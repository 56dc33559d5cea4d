"""`clora classify`, from folders of pictures to tables."""

import json
from pathlib import Path

import pytest

from clora_core import cli
from clora_core.classification import vision
from clora_core.classification.classify import Verdict
from clora_core.pictures import as_floats, to_picture
from tests.classification.tasks import NAMES, pictures
from tests.interrupting import press_ctrl_c_in_bar


def test_classes_are_learned_tested_viewed_and_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for part, names, seed in (("a", NAMES[:2], 0), ("b", NAMES[2:], 0), ("t", NAMES, 5)):
        task = pictures(*names, count=3, seed=seed)
        for number, (picture, label) in enumerate(zip(task.pictures, task.labels.tolist(), strict=True)):
            folder = tmp_path / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_picture(as_floats(picture)).save(folder / f"{number}.png")
    museum = str(tmp_path / "shop.safetensors")
    (tmp_path / "a" / "red" / "Thumbs.db").write_text("")
    (tmp_path / "a" / "loose.png").write_text("")
    for part in "ab":
        assert (
            cli.main(["classify", "learn", "--museum", museum, "--classes", str(tmp_path / part), "--epochs", "2"]) == 0
        )
    out = capsys.readouterr().out
    assert "system files (1): Thumbs.db" in out and "Not a class, so left out: loose.png" in out
    confusion = tmp_path / "confusion.png"
    assert cli.main(["classify", "test", "--museum", museum, str(tmp_path / "t"), "--out", str(confusion)]) == 0
    assert "mean of the classes: 100.0%" in capsys.readouterr().out and confusion.exists()
    table = tmp_path / "view.json"
    assert cli.main(["classify", "view", "--museum", museum, str(tmp_path / "t" / "blue"), "--json", str(table)]) == 0
    assert [row["classes"][0] for row in json.loads(table.read_text())] == ["blue"] * 3
    for target in (museum, str(tmp_path / "t" / "red" / "0.png")):
        before = Path(target).read_bytes()
        assert cli.main(["classify", "view", "--museum", museum, str(tmp_path / "t" / "red"), "--csv", target]) == 1
        assert "must end in .csv" in capsys.readouterr().err and Path(target).read_bytes() == before
    assert cli.main(["classify", "edit", museum, "--remove", "green", "--rename", "blue", "green"]) == 0  # in order
    assert cli.main(["classify", "edit", museum, "--rename", "green", "azure", "--remove", "gold"]) == 1
    assert cli.main(["classify", "edit", museum, "--rename", "green", "azure"]) == 0
    assert cli.main(["classify", "show", museum]) == 0
    assert "azure, dark" in (out := capsys.readouterr().out) and "no deltas" in out
    assert cli.main(["classify", "view", "--museum", museum, str(tmp_path / "nowhere")]) == 1
    assert "no file or folder" in capsys.readouterr().err
    assert cli.main(["classify", "learn", "--museum", museum, "--classes", str(tmp_path / "a")]) == 1
    assert "already has the class" in capsys.readouterr().err
    odd = (tmp_path / "t" / "red" / "0.png").rename(tmp_path / "t" / "red" / "\u200e0.png")
    assert cli.main(["classify", "view", "--museum", museum, str(odd), "--json", str(table)]) == 0
    assert json.loads(table.read_text(encoding="utf-8"))[0]["file"] == str(odd) and capsys.readouterr()
    (broken := tmp_path / "t" / "red" / "broken.png").write_text("no picture")
    assert cli.main(["classify", "view", "--museum", museum, str(broken)]) == 1
    assert "no pictures that can be read" in capsys.readouterr().err
    assert cli.main(["classify", "view", "--museum", museum, str(tmp_path / "t" / "red")]) == 0
    assert "broken.png" in (out := capsys.readouterr().out) and out.count("red 1") == 3


@pytest.mark.parametrize("bar", [1, 2], ids=["before the first step", "after the last step"])
def test_ctrl_c_is_heard_while_pictures_are_read(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, bar: int):
    """The same command then goes on."""
    task = pictures(*NAMES[:2], count=2)
    for number, (picture, label) in enumerate(zip(task.pictures, task.labels.tolist(), strict=True)):
        folder = tmp_path / "classes" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        to_picture(as_floats(picture)).save(folder / f"{number}.png")
    learn = ["classify", "learn", "--museum", str(tmp_path / "m.safetensors"), "--classes", str(tmp_path / "classes")]
    with monkeypatch.context() as patched:
        patched.setattr(vision, "AT_ONCE", 1)
        press_ctrl_c_in_bar(patched, bar)
        assert cli.main(learn) == 130
    assert "Stopped while reading. The same command continues." in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists() and len(list(tmp_path.glob("*.learning.*"))) == bar - 1
    assert cli.main(learn) == 0 and (tmp_path / "m.safetensors").exists()


def test_a_verdict_omits_classes_that_round_to_zero_percent():
    names = ("pear", "fig", "plum")
    assert str(Verdict(names, (0.83, 0.166, 0.004))) == "pear 83%, fig 17%"
    assert str(Verdict(names, (0.004, 0.003, 0.002))) == "pear 0%"
