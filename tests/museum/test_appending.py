"""Appending an exhibit gives the same bytes as saving the whole museum."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clora_core.errors import MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.model.base import Fingerprint
from clora_core.museum.file import append_exhibits, identity, load_museum, load_view, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Exhibit, Museum
from tests.museums import assert_same, exhibit, museum, projections


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["starter", "sd2", "sdxl"])
def test_appending_one_by_one_gives_the_bytes_of_saving_the_whole_museum(architecture, dtype, tmp_path):
    """From an empty museum, with different ranks and projections, layer-wise words, gates, strengths, a word alone."""
    own = {"architecture": architecture}
    plain = museum(architecture)
    strong = replace(exhibit("<strong>", projections(architecture), seed=8, **own), strength=-0.5)
    layered = exhibit("<deep>", projections(architecture)[1:3], seed=9, layers=16, words=2, **own)
    gated = exhibit("<shy>", projections(architecture), seed=7, recipe=recipe_named("word-gated", rank=4), **own)
    exhibits = (gated, plain.exhibits[1], layered, strong, plain.exhibits[3], plain.exhibits[0], plain.exhibits[2])
    path, whole = tmp_path / "grown" / "a.safetensors", tmp_path / "whole" / "a.safetensors"
    for folder in (path.parent, whole.parent):
        folder.mkdir()
    save_museum(Museum(plain.base), path, dtype=dtype)
    for count, one in enumerate(exhibits, 1):
        before = path.read_bytes()
        append_exhibits([one], path, base=plain.base)
        save_museum(Museum(plain.base, exhibits[:count]), whole, overwrite=True, dtype=dtype)
        assert path.read_bytes() == whole.read_bytes()
        assert backups_of(path)[-1].read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1 + 3


@pytest.mark.parametrize("parts", [1, 100, 1000])
def test_parts_of_any_size_give_the_same_file(parts, tmp_path, monkeypatch):
    """Also with parts smaller than one row of a tensor."""
    from clora_core.museum.file import joined

    whole, path = tmp_path / "whole" / "a.safetensors", tmp_path / "a.safetensors"
    whole.parent.mkdir()
    save_museum(museum(), whole)
    monkeypatch.setattr(joined, "PART_BYTES", parts)
    save_museum(museum().only(["<my-cat>", "<ink>", "<bär>"]), path)
    append_exhibits([museum().exhibits[3]], path, base=museum().base)
    assert path.read_bytes() == whole.read_bytes()


def test_exhibits_that_another_program_adds_meanwhile_are_kept(tmp_path, monkeypatch):
    """A second append starts and ends while the first one writes."""
    from clora_core.museum.file import saving

    path, (one, two, *rest) = tmp_path / "a.safetensors", museum().exhibits
    save_museum(Museum(museum().base, tuple(rest)), path)
    dump_with, calls = saving._dump_with, []

    def interrupted(addition: Museum, *where: object) -> None:
        dump_with(addition, *where)
        calls.append(addition.words)
        if len(calls) == 1:
            append_exhibits([two], path, base=museum().base)

    monkeypatch.setattr(saving, "_dump_with", interrupted)
    append_exhibits([one], path, base=museum().base)
    assert calls == [(one.word,), (two.word,), (one.word,)]
    assert_same(load_museum(path), Museum(museum().base, (*rest, two, one)))


def append_many(number: int, path: Path) -> None:
    for count in range(12):
        one = exhibit(f"<p{number}-{count}>", projections("sd15")[:2], seed=count, ranks=(1,))
        append_exhibits([one], path, base=museum().base)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no lock on a folder")
def test_concurrent_appends_lose_no_exhibit(tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(Museum(museum().base), path)
    writers = [multiprocessing.get_context("fork").Process(target=append_many, args=(n, path)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(load_museum(path).exhibits) == 36


def test_a_file_that_was_changed_since_it_was_read_is_not_replaced(tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    read = identity(path)
    append_exhibits([exhibit("<x>", projections("sd15"), seed=8)], path, base=museum().base)
    before = path.read_bytes()
    with pytest.raises(MuseumError, match="Another program has changed it since it was read"):
        save_museum(museum(), path, overwrite=True, read=read)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    save_museum(museum(), path, overwrite=True, read=identity(path))


def broken(intact: Exhibit) -> Exhibit:
    """The exhibit with a NaN in a factor."""
    next(iter(intact.deltas.values())).down[0, 0] = float("nan")
    return intact


@pytest.mark.parametrize(
    ("addition", "base", "rule"),
    [
        (lambda: exhibit("<ink>", projections("sd15"), seed=5), museum().base, "'<ink>' occurs 2 times"),
        (lambda: exhibit("<x>", projections("sd15"), seed=5), Fingerprint("sd15", "f" * 64), "made for 'sd15"),
        (lambda: exhibit("<x>", projections("sdxl"), seed=5), museum().base, "width of 2048"),
        (lambda: broken(exhibit("<x>", projections("sd15"), seed=5)), museum().base, "not finite"),
    ],
)
def test_a_refused_addition_leaves_the_file_unchanged(addition, base, rule, tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    before = path.read_bytes()
    with pytest.raises(MuseumError, match=rf"^a\.safetensors: .*{rule}"):
        append_exhibits([addition()], path, base=base)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_missing_file_is_created_and_a_foreign_file_is_left_unchanged(tmp_path):
    added, base = exhibit("<x>", projections("sd15"), seed=5), museum().base
    append_exhibits([added], tmp_path / "a.safetensors", base=base)
    assert_same(load_museum(tmp_path / "a.safetensors"), Museum(base, (added,)))
    (tmp_path / "b.safetensors").write_bytes(b"precious")
    with pytest.raises(MuseumError, match=r"^b\.safetensors"):
        append_exhibits([added], tmp_path / "b.safetensors", base=base)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert (tmp_path / "b.safetensors").read_bytes() == b"precious"


def test_a_view_matches_the_dense_sum_of_the_museum(tmp_path):
    """Against `load_museum` and `Museum.dense`, with the exhibits' own strengths and with given ones."""
    before = museum()
    before = replace(before, exhibits=(replace(before.exhibits[0], strength=0.25), *before.exhibits[1:]))
    path = tmp_path / "a.safetensors"
    save_museum(before, path)
    for strengths in (None, {"<bär>": -2.0, "<my-cat>": 0.5, "lonely": 3.0}, {"<ink>": 1.0}, {}):
        view = load_view(path, strengths)
        chosen = before if strengths is None else before.only(list(strengths))
        assert view.base == before.base and tuple(token.word for token in view.tokens) == chosen.words
        for token, expected in zip(view.tokens, chosen.tokens, strict=True):
            assert torch.equal(token.vectors["clip_l"], expected.vectors["clip_l"])
        matrices = chosen.dense(strengths)
        for projection, matrix in view.deltas.items():
            expected = matrices.get(projection, torch.zeros(projection.shape))
            torch.testing.assert_close(matrix, expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(MuseumError, match=r"no '<dog>'.*<my-cat>, <ink>"):
        load_view(path, {"<dog>": 1.0})
    assert_same(before, load_museum(path))
