"""The strength of an exhibit: every reader applies it, and the learned deltas are not rounded."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clora_core.errors import MuseumError
from clora_core.learning.key import learning_key
from clora_core.model.low_rank import LowRank
from clora_core.museum.editing import with_strength
from clora_core.museum.file import append_exhibits, load_museum, load_view, museum_file, read_header, save_museum
from clora_core.museum.museum import Museum
from tests.museums import assert_same, museum, taken_apart, unsealed, with_inner
from tests.small import C_LORA, museum_of, short, small_concept, taught

STRENGTHS = {"<my-cat>": 0.3, "<ink>": -1.7, "<bär>": 0.0}


def strong(architecture: str = "sd15") -> Museum:
    """The tests' museum, three of its exhibits at other strengths."""
    whole = museum(architecture)
    for word, strength in STRENGTHS.items():
        whole = with_strength(whole, word, strength)
    return whole


def summed(whole: Museum, strengths: dict[str, float]) -> dict[str, torch.Tensor]:
    """path → Σ strength · up @ down, by a loop in float64."""
    sums: dict[str, torch.Tensor] = {}
    for each in whole.exhibits:
        for projection, delta in each.deltas.items():
            moved = strengths.get(each.word, 1.0) * (delta.up.double() @ delta.down.double())
            sums[projection.path] = sums.get(projection.path, 0) + moved
    return sums


@pytest.mark.parametrize("architecture", ["starter", "sd15", "sd2", "sdxl"])
def test_strength_survives_a_file_without_rounding(architecture, tmp_path):
    before = strong(architecture)
    save_museum(before, tmp_path / "a.safetensors")
    after = load_museum(tmp_path / "a.safetensors")
    assert_same(before, after)
    assert [each.strength for each in after.exhibits] == [0.3, -1.7, 0.0, 1.0]
    for word in STRENGTHS:
        after = with_strength(after, word, 1.0)
    assert_same(museum(architecture), after)


def test_ordinary_loaders_show_every_exhibit_at_its_strength(tmp_path):
    save_museum(strong(), tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    for path, expected in summed(museum(), STRENGTHS).items():
        stem = "lora_unet_" + path.replace(".", "_")
        up, down = tensors[f"{stem}.lora_up.weight"].double(), tensors[f"{stem}.lora_down.weight"].double()
        torch.testing.assert_close(tensors[f"{stem}.alpha"] / len(down) * (up @ down), expected, rtol=1e-5, atol=1e-4)


def test_given_strengths_multiply_the_exhibits_own():
    twice = summed(museum(), {"<my-cat>": 0.6, "<ink>": -1.7, "<bär>": 0.0})
    for projection, matrix in strong().dense({"<my-cat>": 2.0}).items():
        torch.testing.assert_close(matrix.double(), twice[projection.path], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ranks_at_once", [1, 5, 1024])
def test_the_sum_read_from_a_file_matches_its_exhibits(ranks_at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(museum_file, "RANKS_AT_ONCE", ranks_at_once)
    save_museum(strong(), tmp_path / "a.safetensors")
    given = {"<my-cat>": 2.0, "<ink>": 0.5, "<bär>": 1.0}
    for strengths in (None, given):
        expected = strong().dense() if strengths is None else strong().only(list(given)).dense(given)
        found = load_view(tmp_path / "a.safetensors", strengths).deltas
        assert set(found) == set(expected)
        for projection, matrix in found.items():
            torch.testing.assert_close(matrix, expected[projection], rtol=1e-4, atol=1e-4)


def test_strengths_are_written_only_where_they_differ_from_one(tmp_path):
    save_museum(museum(), tmp_path / "a.safetensors")
    save_museum(with_strength(strong(), "<ink>", 1), tmp_path / "b.safetensors")
    header, _ = taken_apart(tmp_path / "a.safetensors")
    assert '"strength"' not in header["__metadata__"]["clora.museum"]
    assert not [name for name in header if name.startswith("clora.up.")]
    header, _ = taken_apart(tmp_path / "b.safetensors")
    assert header["__metadata__"]["clora.museum"].count('"strength"') == 2
    assert not [name for name in header if name.startswith("clora.up.<ink>.")]


def test_one_exhibit_is_loaded_with_its_strength(tmp_path):
    save_museum(strong(), tmp_path / "a.safetensors")
    assert_same(strong().only(["<ink>"]), load_museum(tmp_path / "a.safetensors", words=["<ink>"]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_only_once(dtype, tmp_path):
    save_museum(museum(), tmp_path / "plain.safetensors", dtype=dtype)
    save_museum(strong(), tmp_path / "a.safetensors", dtype=dtype)
    plain, after = load_museum(tmp_path / "plain.safetensors"), load_museum(tmp_path / "a.safetensors")
    for word, strength in STRENGTHS.items():
        plain = with_strength(plain, word, strength)
    assert_same(plain, after)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 101, -1e30])
def test_invalid_strengths_are_refused(strength, tmp_path):
    with pytest.raises(MuseumError, match=r"<my-cat>.*between -100 and 100"):
        with_strength(museum(), "<my-cat>", strength)


@pytest.mark.parametrize("strength", ["much", None, True, 1e30, [], 0.5])
def test_a_header_with_an_invalid_strength_is_refused(strength, tmp_path):
    """0.5 is a valid strength, but the file lacks the exhibit's own factors."""
    save_museum(museum(), tmp_path / "a.safetensors")
    with_inner(tmp_path / "a.safetensors", lambda inner: inner["exhibits"][0].update(strength=strength))
    for read in (load_museum, read_header):
        with pytest.raises(MuseumError, match=r"strength|clora\.up\.<my-cat>"):
            read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("changed", ["clora.up.<ink>.", "lora_up.weight"])
def test_a_file_whose_sum_differs_from_the_learned_deltas_is_refused(changed, dtype, tmp_path):
    """Some numbers are 10% larger, in the exhibit's own factors or in its columns of the sum."""
    path = tmp_path / "a.safetensors"
    save_museum(strong(), path, dtype=dtype)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = unsealed(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}
    own = next(name for name in tensors if name.startswith("clora.up.<ink>."))
    stem = own.removeprefix("clora.up.<ink>.")
    if changed == "lora_up.weight":
        column = slice(4, 7)  # <my-cat> has the first four, <ink> three
        tensors[f"{stem}.lora_up.weight"][7, column] *= 1.1
    else:
        tensors[own][7] *= 1.1
    save_file(tensors, path, metadata)
    cat = museum().exhibit("<my-cat>")
    one_more = dataclasses.replace(cat, token=dataclasses.replace(cat.token, word="<new>"))
    before = path.read_bytes()

    def append(path):
        append_exhibits([one_more], path, base=museum().base)

    for use in (load_museum, load_view, append):
        with pytest.raises(MuseumError, match=rf"{stem}\.lora_up\.weight' is not 'clora.up.<ink>.*' times -1\.7"):
            use(path)
    assert path.read_bytes() == before
    assert load_museum(path, words=["<my-cat>"]).words == ("<my-cat>",)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-4, 1.0, 500.0])
def test_rounding_errors_do_not_make_a_file_invalid(size, dtype, tmp_path):
    """With numbers of every size that the dtype holds, also those with few significant digits."""
    for number, strength in enumerate((0.3, -1.7, 1e-6, 99.0)):
        given = museum().exhibit("<ink>")
        deltas = {projection: LowRank(size * delta.up, delta.down) for projection, delta in given.deltas.items()}
        tried = Museum(museum().base, (dataclasses.replace(given, deltas=deltas, strength=strength),))
        path = tmp_path / f"{number}.safetensors"
        if dtype == "float16" and size * strength > 1e4:
            with pytest.raises(MuseumError, match="not finite"):
                save_museum(tried, path, dtype=dtype)
            continue
        save_museum(tried, path, dtype=dtype)
        assert load_museum(path).words == tuple(token.word for token in load_view(path).tokens)


def test_learning_uses_the_exhibits_at_their_strength(base):
    """It gives the same as with factors that are multiplied by hand, and not the same as at strength 1."""
    whole = museum_of(base, "<one>", "<two>", recipe=short(steps=1))
    weaker = with_strength(whole, "<one>", 0.25)
    one = whole.exhibit("<one>")
    scaled = {projection: delta.scaled(0.25) for projection, delta in one.deltas.items()}
    by_hand = dataclasses.replace(whole, exhibits=(dataclasses.replace(one, deltas=scaled), whole.exhibits[1]))
    recipe = short(C_LORA, steps=2)
    learned = [taught(base, past, small_concept("<three>"), recipe).exhibits[-1] for past in (weaker, by_hand, whole)]
    assert learned[0].same_as(learned[1]) and not learned[0].same_as(learned[2])
    keys = {learning_key(base, past, [small_concept("<three>")], recipe) for past in (weaker, whole)}
    assert len(keys) == 2
