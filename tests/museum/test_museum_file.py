"""Museum files survive a round trip, and are ordinary LoRAs with bundled words."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clora_core.errors import ConceptError, MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.model.concept import Concept
from clora_core.model.projections import Projection
from clora_core.museum.file import append_exhibits, load_museum, load_view, read_header, save_museum
from clora_core.museum.museum import Museum
from tests.museums import assert_same, exhibit, museum, projections, put_together, taken_apart, unsealed

ARCHITECTURES = ("starter", "sd15", "sd2", "sdxl")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_save_then_load_is_identity(architecture, tmp_path):
    before = museum(architecture)
    save_museum(before, tmp_path / "a.safetensors")
    assert_same(before, load_museum(tmp_path / "a.safetensors"))


def test_an_empty_museum_can_be_saved(tmp_path):
    empty = Museum(museum().base)
    save_museum(empty, tmp_path / "a.safetensors")
    assert_same(empty, load_museum(tmp_path / "a.safetensors"))


def test_layer_wise_words_are_stored_outside_of_the_bundle(tmp_path):
    layered = exhibit("<deep>", projections("sd15"), seed=9, layers=16, words=2)
    before = museum().with_exhibits(layered)
    save_museum(before, tmp_path / "a.safetensors")
    assert_same(before, load_museum(tmp_path / "a.safetensors"))
    tensors = load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["clora.token.<deep>.clip_l"], layered.token.vectors["clip_l"])
    assert not [key for key in tensors if key.startswith("bundle_emb.<deep>")]


@pytest.mark.parametrize("applied", ["word", "onwards"])
def test_gated_exhibits_are_neither_in_the_sum_nor_in_the_bundle(applied, tmp_path):
    """Ordinary loaders would apply them everywhere, so they get the museum without them, bit for bit."""
    recipe = replace(recipe_named("word-gated", rank=4), applied=applied)
    gated = replace(exhibit("<shy>", projections("sd15"), seed=9, words=2, recipe=recipe), strength=0.5)
    exhibits = (museum().exhibits[0], gated, *museum().exhibits[1:])
    before = replace(museum(), exhibits=exhibits)
    save_museum(before, tmp_path / "a.safetensors")
    save_museum(museum(), tmp_path / "without.safetensors")
    after = load_museum(tmp_path / "a.safetensors")
    assert_same(before, after)
    assert after.exhibit("<shy>").gate == gated.gate
    tensors, without = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "without.safetensors")
    own = set(tensors) - set(without)
    assert own and all(name.startswith(("clora.up.<shy>.", "clora.down.<shy>.", "clora.token.<shy>.")) for name in own)
    assert all(torch.equal(tensors[name], without[name]) for name in without)
    view = load_view(tmp_path / "a.safetensors")
    assert [each.word for each in view.gated] == ["<shy>"] and view.gated[0].same_as(gated)
    dense = museum().dense()
    for projection, matrix in view.deltas.items():
        torch.testing.assert_close(matrix, dense[projection], atol=1e-4, rtol=1e-5)
    alone = replace(before, exhibits=(gated,))
    save_museum(alone, tmp_path / "alone.safetensors")
    assert_same(alone, load_museum(tmp_path / "alone.safetensors"))
    assert not load_view(tmp_path / "alone.safetensors").deltas


OLD_RECIPES = {  # values in older files → their names now
    ("everywhere", "the museum"): ("everywhere", "museum"),
    ("everywhere", "the base"): ("everywhere", "base"),
    ("everywhere", "the last delta"): ("everywhere", "shared"),
    ("at its word", "the museum"): ("word", "museum"),
    ("from its word on", "the museum"): ("onwards", "museum"),
}


def test_files_with_older_recipe_values_can_be_loaded(tmp_path):
    """In a handmade file; saving it again writes the new names."""
    metadata, exhibits, data = {"clora.format": "clora-museum", "clora.version": "1"}, [], b""
    tensors: dict[str, dict] = {}
    for number, (applied, over) in enumerate(OLD_RECIPES):
        recipe = {"method": "old", "regularizers": [{"name": "self_regularization", "weight": 1.0}]}
        more = {"word": f"<{number}>", "kind": "object", "prompt": "", "facts": {}, "rank": {}, "layers": 1, "words": 1}
        more |= {"encoders": ["clip_l"], "thumbnail": "", "recipe": recipe | {"applied": applied, "over": over}}
        exhibits.append(more)
        name, shape = f"bundle_emb.<{number}>.string_to_param.*", [1, 128]
        if applied != "everywhere":
            name, shape = f"clora.token.<{number}>.clip_l", [1, 1, 128]
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 512]}
        data += struct.pack("<128f", *[number] * 128)
    base = {"architecture": "starter", "digest": "0123"}
    metadata["clora.museum"] = json.dumps({"base": base, "dtype": "float32", "projections": [], "exhibits": exhibits})
    put_together(tmp_path / "old.safetensors", {"__metadata__": metadata, **tensors}, data)

    found = load_museum(tmp_path / "old.safetensors")
    assert [(e.recipe.applied, e.recipe.over) for e in found.exhibits] == list(OLD_RECIPES.values())
    assert [e.gate.onwards if e.gate else None for e in found.exhibits] == [None, None, None, False, True]
    assert [e.recipe.regularizers[0].weight for e in found.exhibits] == [1.0] * 5, "which no default replaces"
    save_museum(found, tmp_path / "new.safetensors")
    assert_same(found, load_museum(tmp_path / "new.safetensors"))
    header, _ = taken_apart(tmp_path / "new.safetensors")
    written = json.loads(header["__metadata__"]["clora.museum"])["exhibits"]
    assert [(e["recipe"]["applied"], e["recipe"]["over"]) for e in written] == list(OLD_RECIPES.values())


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_half_precision_rounds_only_once(dtype, torch_dtype, tmp_path):
    before = museum()
    save_museum(before, tmp_path / "a.safetensors", dtype=dtype)
    after = load_museum(tmp_path / "a.safetensors")
    for ours, theirs in zip(before.exhibits, after.exhibits, strict=True):
        for projection, delta in ours.deltas.items():
            assert torch.equal(delta.up.to(torch_dtype).float(), theirs.deltas[projection].up)
    save_museum(after, tmp_path / "b.safetensors", dtype=dtype)
    assert taken_apart(tmp_path / "a.safetensors")[1] == taken_apart(tmp_path / "b.safetensors")[1]
    assert read_header(tmp_path / "a.safetensors").dtype == dtype


def test_values_too_large_for_float16_are_refused(tmp_path):
    huge = Museum(museum().base, (exhibit("<huge>", [], seed=1),))
    huge.exhibits[0].token.vectors["clip_l"][0, 0, 0] = 1e6
    with pytest.raises(MuseumError, match=r"<huge>.*not finite"):
        save_museum(huge, tmp_path / "a.safetensors", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_the_header_has_ranks_recipes_facts_and_thumbnails(tmp_path):
    before = museum()
    save_museum(before, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert (header.base, header.words) == (before.base, before.words)
    for ours, theirs in zip(before.exhibits, header.exhibits, strict=True):
        assert theirs.ranks == {projection: delta.rank for projection, delta in ours.deltas.items()}
        assert (theirs.recipe, theirs.facts, theirs.prompt) == (ours.recipe, ours.facts, ours.prompt)
        assert (theirs.words, theirs.layers, theirs.thumbnail) == (ours.token.words, 1, ours.thumbnail)


def test_the_same_museum_gives_the_same_bytes(tmp_path):
    """Also after it was loaded from a file, and in another process, where the hashes of strings differ."""
    one, other, loaded = (tmp_path / name / "a.safetensors" for name in ("one", "other", "loaded"))
    for path in (one, other, loaded):
        path.parent.mkdir()
    save_museum(museum(), one)
    save_museum(load_museum(one), loaded)
    assert one.read_bytes() == loaded.read_bytes()
    program = f"from tests.museums import *; save_museum(museum(), {str(other)!r})"
    program = f"from clora_core.museum.file import save_museum; {program}"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, env={**os.environ, "PYTHONHASHSEED": "12345"})
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_file_is_an_ordinary_lora(architecture, tmp_path):
    """alpha / rank · up @ down of every key is the sum of the exhibits' deltas, added up by a loop in float64."""
    before = museum(architecture)
    save_museum(before, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    found = {key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")}
    expected: dict[str, torch.Tensor] = {}
    for each in before.exhibits:
        for projection, delta in each.deltas.items():
            key = kohya_key(projection, architecture)
            matrix = torch.zeros(projection.shape, dtype=torch.float64)
            for column, row in zip(delta.up.double().T, delta.down.double(), strict=True):
                matrix += torch.outer(column, row)
            expected[key] = expected.get(key, 0) + matrix
    assert found == set(expected)
    for key, matrix in expected.items():
        up, down, alpha = (tensors[f"{key}.{name}"] for name in ("lora_up.weight", "lora_down.weight", "alpha"))
        assert up.shape[1] == down.shape[0] == alpha.item()
        torch.testing.assert_close(alpha.item() / down.shape[0] * (up.double() @ down.double()), matrix)


def kohya_key(projection: Projection, architecture: str) -> str:
    """Written out by hand for the four blocks of the test's museum."""
    blocks = {
        "down_blocks.0.attentions.0": "input_blocks_1_1",
        "down_blocks.1.attentions.1": "input_blocks_5_1",
        "mid_block.attentions.0": "middle_block_1",
        "up_blocks.1.attentions.2": "output_blocks_5_1",
    }
    block, rest = projection.path.split(".transformer_blocks.")
    block = blocks[block] if architecture == "sdxl" else block.replace(".", "_")
    return f"lora_unet_{block}_transformer_blocks_{rest.replace('.', '_')}"


def test_words_are_bundled_under_the_names_that_a1111_reads(tmp_path):
    for architecture, names in (
        ("sd15", {"string_to_param.*": "clip_l"}),
        ("sdxl", {"clip_l": "clip_l", "clip_g": "clip_g"}),
    ):
        before = museum(architecture)
        path = tmp_path / f"{architecture}.safetensors"
        save_museum(before, path)
        tensors = load_file(path)
        for each in before.exhibits:
            for name, encoder in names.items():
                assert torch.equal(tensors[f"bundle_emb.{each.word}.{name}"], each.token.vectors[encoder][0])
        assert len([key for key in tensors if key.startswith("bundle_emb.")]) == 4 * len(names)


def test_selected_words_are_read_in_the_museums_order(tmp_path):
    save_museum(museum(), tmp_path / "a.safetensors")
    assert_same(museum().only(["<ink>", "<bär>"]), load_museum(tmp_path / "a.safetensors", words=["<bär>", "<ink>"]))
    assert load_museum(tmp_path / "a.safetensors", words=[]).exhibits == ()
    with pytest.raises(MuseumError, match=r"no '<dog>'.*<my-cat>, <ink>"):
        load_museum(tmp_path / "a.safetensors", words=["<dog>"])


def test_only_the_rows_of_the_selected_words_are_read(tmp_path):
    """The other exhibits have NaN, so reading more rows would fail."""
    path = tmp_path / "a.safetensors"
    before = museum()
    save_museum(before, path)
    header, data = taken_apart(path)
    broken = bytearray(data)
    nan = struct.pack("<f", float("nan"))
    for name, entry in header.items():
        if name == "__metadata__" or name.endswith(".alpha"):
            continue
        start, _ = entry["data_offsets"]
        if name.startswith("bundle_emb."):
            rows = entry["shape"][0] * ("<bär>" not in name)
            places = range(rows * entry["shape"][1])
        else:
            last = rank_of(before, "<bär>", name, header)
            rank = entry["shape"][1 if ".lora_up." in name else 0]
            count = entry["shape"][0] * entry["shape"][1]
            width = entry["shape"][1]
            places = [i for i in range(count) if (i % width if ".lora_up." in name else i // width) < rank - last]
        for place in places:
            broken[start + 4 * place : start + 4 * place + 4] = nan
    header["__metadata__"] = unsealed(header["__metadata__"])
    put_together(path, header, bytes(broken))
    assert_same(before.only(["<bär>"]), load_museum(path, words=["<bär>"]))
    with pytest.raises(MuseumError, match="not finite"):
        load_museum(path)
    with pytest.raises(MuseumError, match="not finite"):
        load_museum(path, words=["lonely"])


def rank_of(whole: Museum, word: str, name: str, header: dict) -> int:
    """The rank that the last exhibit with deltas has under this tensor's name."""
    deltas = whole.exhibit(word).deltas
    return next(d.rank for p, d in deltas.items() if name.startswith(kohya_key(p, "sd15") + "."))


def test_a_loaded_museum_does_not_depend_on_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    loaded = load_museum(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert_same(museum(), loaded)


def test_older_files_with_invisible_characters_in_words_can_be_loaded(tmp_path):
    """In memory the words are normalized; the names of their tensors stay unchanged."""
    on, path = projections("sd15"), tmp_path / "a.safetensors"
    strong = exhibit("<my-dog>", on, seed=5, strength=0.5)
    gated = exhibit("<shy>", on, seed=7, recipe=recipe_named("word-gated", rank=4), prompt="a <shy> thing")
    before = museum().with_exhibits(strong, gated)
    save_museum(before, path)
    spellings = {
        "<my-cat>": "<my-\u200bcat\u202e>",
        "<b\u00e4r>": "<ba\u0308r>",
        "<my-dog>": "<my-dog>\ufe0f",
        "<shy>": "<s\xadhy>",
    }

    def respelled(text: str) -> str:
        for word, spelled in spellings.items():
            text = text.replace(word, spelled)
        return text

    header, data = taken_apart(path)
    metadata = {name: respelled(value) for name, value in unsealed(header.pop("__metadata__")).items()}
    put_together(path, {"__metadata__": metadata, **{respelled(name): entry for name, entry in header.items()}}, data)
    assert set(spellings.values()) <= {entry["word"] for entry in json.loads(metadata["clora.museum"])["exhibits"]}
    assert read_header(path).words == before.words
    assert_same(load_museum(path), before)
    assert load_museum(path, words=["<my-dog>\ufe0f", "<my-cat>"]).words == ("<my-cat>", "<my-dog>")
    view, expected = load_view(path, {"<my-\u200bdog>": 2.0}), before.only(["<my-dog>"]).dense({"<my-dog>": 2.0})
    assert all(torch.allclose(view.deltas[projection], delta, atol=1e-5) for projection, delta in expected.items())
    added = exhibit("<new>", on, seed=8)
    append_exhibits([added], path, base=before.base)
    assert_same(load_museum(path), before.with_exhibits(added))


ODD = st.sampled_from("a1é犬 \0\t\n\r\x1b\x7f\x9b\u2028\u202e\ud800\udfff{word}<>👩‍🚀\ufeff\uffff")
ANY_TEXT = st.text(ODD | st.characters(codec=None, categories=None), max_size=12)


# most of these words are refused
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(word=ANY_TEXT, before=ANY_TEXT)
def test_every_valid_word_can_be_saved(tmp_path_factory, word, before):
    """Every valid word and prompt survives a file."""
    try:
        concept = Concept(f"x{word}", torch.zeros(1, 3, 8, 8), template=f"{before} {{word}}")
    except ConceptError:
        assume(False)
        raise
    kept = exhibit(concept.word, projections("sd15")[:1], seed=1, prompt=concept.prompt)
    path = tmp_path_factory.mktemp("kept") / "a.safetensors"
    save_museum(Museum(museum().base, (kept,)), path)
    assert_same(load_museum(path), Museum(museum().base, (kept,)))
