"""`show`, as a person and as a program read it."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clora_core.cli import main
from clora_core.commands import show
from clora_core.errors import MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.museum.file import save_museum
from clora_core.museum.museum import Museum
from clora_core.museum.overlap import overlap_matrix, size
from clora_core.pictures import from_thumbnail
from clora_core.texts import normal
from tests.museums import exhibit, museum, projections, put_together, taken_apart, unsealed, with_inner

ROOT = Path(__file__).parents[2]
ESCAPE = "<x>\x1b[2J\x9b1m\0"


def jpeg(width: int = 20, height: int = 10, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (250, 10, 10)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def zoo() -> Museum:
    """The tests' museum with thumbnails, a strength, a gate and layers."""
    gated = exhibit("<shy>", projections("sd15"), seed=6, recipe=recipe_named("word-gated"))
    layered = exhibit("<deep>", projections("sd15"), seed=9, layers=16)
    first, *others = museum().exhibits
    first = replace(first, strength=0.5, thumbnail=jpeg(), facts={**first.facts, "loss": 0.25678})
    return Museum(museum().base, (first, *others, gated, layered))


@pytest.fixture
def path(zoo: Museum, tmp_path: Path) -> Path:
    return save_museum(zoo, tmp_path / "zoo.safetensors")


def test_file_cannot_control_the_terminal(tmp_path, capsys):
    """A prompt and a fact that would clear the screen and set its title."""
    hostile = replace(museum().exhibits[0], prompt="a\x1b[2J\x9b1m <my-cat>\nb", facts={"date": "\x1b]0;you\x07"})
    path = save_museum(Museum(museum().base, (hostile,)), tmp_path / "a.safetensors")
    assert main(["show", str(path)]) == 0
    printed = capsys.readouterr().out
    assert r"“a\u001b[2J\u009b1m <my-cat>\nb”" in printed and all(c.isprintable() or c == "\n" for c in printed)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_missing_in_the_encoding_are_escaped(path: Path, encoding: str, monkeypatch):
    """As Windows writes with `show zoo.safetensors > zoo.txt`."""
    prompt = "“cat” · 木 👩‍🚀"
    with_inner(path, lambda inner: inner["exhibits"][0].update(prompt=prompt))
    header, data = taken_apart(path)
    put_together(path, header | {"__metadata__": unsealed(header["__metadata__"])}, data)
    for options in ([], ["--json"]):
        monkeypatch.setattr("sys.stdout", out := io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert main(["show", str(path), *options]) == 0
        out.flush()
        printed = out.buffer.getvalue().decode(encoding)
        assert r"\u6728 \ud83d\udc69" in printed and ("“cat” ·" in printed) == (encoding == "cp1252")
    assert json.loads(printed)["exhibits"][0]["prompt"] == normal(prompt)


def places(tree: object) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a JSON tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])  # type: ignore[index]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_header_can_control_the_terminal(path, capsys, options):
    whole = path.read_bytes()
    count = len(list(places(json.loads(taken_apart(path)[0]["__metadata__"]["clora.museum"]))))
    for number in range(0, count, 5):

        def change(inner: dict, number: int = number) -> None:
            tree, key = list(places(inner))[number]
            tree[ESCAPE if isinstance(tree, dict) and number % 2 else key] = ESCAPE

        path.write_bytes(whole)
        with_inner(path, change)
        assert main(["show", str(path), *options]) in (0, 1)
        heard = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in heard.out + heard.err), number
        assert heard.err or not options or json.loads(heard.out)


def test_names_of_tensors_and_files_cannot_control_the_terminal(tmp_path, capsys):
    """Of a LoRA that was made elsewhere, and of a file that is not there."""
    save_file({f"lora_unet_{ESCAPE}.lora_up.weight": torch.ones(1, 1)}, lora := tmp_path / "a.safetensors")
    command = ["import", "--museum", str(tmp_path / "b.safetensors"), "--word", "<x>", "--base", "starter"]
    assert main([*command, "--start", "x", "--lora", str(lora)]) == 1
    assert main(["show", f"{ESCAPE}\udcff"]) == 1
    output = capsys.readouterr().err
    assert output.count("u001b") >= 2 and all(c.isprintable() or c == "\n" for c in output)


def test_text_lists_the_exhibits(path, capsys):
    assert main(["show", str(path)]) == 0
    output = capsys.readouterr().out
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0].startswith(f"{path}: 6 exhibits for sd15 · 0123abcd")
    assert "1. <my-cat>  (object, “a photo of <my-cat>”)" in lines
    assert any(line.startswith("c-lora, rank 4, 400 steps, norm ") for line in lines)
    for part in ("strength 0.5", "3 vectors", "acts at its word,", "its word has 16 layers"):
        assert part in output
    assert output.count("other programs cannot show it") == 2
    assert "pictures 5, loss 0.257" in output and "overlap (0: different weights" in output
    assert max(map(len, output.splitlines())) < 140


def test_reader_that_has_enough_is_no_error(path):
    """As with `show … | head -1`."""
    command = [sys.executable, "-u", "-m", "clora_core", "show", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_json_has_everything_but_the_tensors(path, zoo, capsys):
    assert main(["show", str(path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["base"] == {"architecture": "sd15", "digest": "0123abcd" * 8}
    assert (output["bytes"], output["dtype"], output["file"]) == (path.stat().st_size, "float32", str(path))
    for found, shown in zip(output["exhibits"], zoo.exhibits, strict=True):
        assert (found["word"], found["strength"], found["rank"]) == (shown.word, shown.strength, shown.rank)
        assert found["norm"] == pytest.approx(size(shown))
        assert (found["recipe"], found["facts"]) == (shown.recipe.to_json(), dict(shown.facts))
    assert [found["ordinary"] for found in output["exhibits"]] == [True, True, True, True, False, False]
    assert [found["applied"] for found in output["exhibits"]][4] == "word"
    for row, expected in zip(output["overlap"], overlap_matrix(zoo).tolist(), strict=True):
        assert row == pytest.approx(expected)


def test_large_museum_is_measured_only_on_request(path, capsys, monkeypatch):
    """Its tensors are not read either: in this file they are incomplete."""
    monkeypatch.setattr(show, "MEASURED", 5)
    monkeypatch.setattr(show, "load_museum", None)
    assert main(["show", str(path)]) == 0
    assert "--overlap" in capsys.readouterr().out
    assert main(["show", str(path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["overlap"] is None and output["exhibits"][0]["norm"] is None
    monkeypatch.undo()
    monkeypatch.setattr(show, "MEASURED", 5)
    assert main(["show", str(path), "--overlap"]) == 0
    assert "overlap (0: different weights" in capsys.readouterr().out


def test_sheet_shows_the_thumbnails(path, tmp_path, capsys):
    assert main(["show", str(path), "--sheet", str(tmp_path / "sheet.png")]) == 0
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 128 and (250, 10, 10) in {
        tuple(round(value, -1) for value in color) for _, color in sheet.getcolors(10**6) or []
    }
    assert main(["show", str(path), "--sheet", str(tmp_path / "no" / "where.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_invalid_thumbnail_is_not_decoded():
    bomb = jpeg(20, 20).replace(b"\x00\x14\x00\x14", b"\xff\xff\xff\xff", 1)  # claims 65535×65535
    for encoded, rule in (
        (b"\xff\xd8thumb", "JPEG"),
        (jpeg(kind="PNG"), "JPEG"),
        (jpeg(kind="GIF"), "JPEG"),
        (jpeg()[:-40], "JPEG"),
        (jpeg(2000, 10), "2000×10"),
        (bomb, "pixels"),
        (b"", "JPEG"),
    ):
        with pytest.raises(MuseumError, match=rule):
            from_thumbnail(encoded)
    assert from_thumbnail(jpeg()).size == (20, 10)


def test_a_museum_without_thumbnails_says_so(tmp_path, capsys):
    path = save_museum(museum().only(["<ink>"]), tmp_path / "a.safetensors")
    assert main(["show", str(path), "--sheet", str(tmp_path / "sheet.png")]) == 1
    assert "no thumbnail" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
