"""Hostile files raise only MuseumError, fast, and are never loaded in part."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clora_core.errors import MuseumError
from clora_core.museum.file import load_museum, read_header, save_museum
from clora_core.museum.file.files import HEADER_LIMIT
from tests.museums import museum, put_together, taken_apart, unsealed, with_inner


def refused(path: Path, match: str | None = None) -> None:
    """Every way of reading the file quickly raises a MuseumError that names it."""
    began = time.process_time()
    for read in (load_museum, read_header):
        with pytest.raises(MuseumError, match=match) as caught:
            read(path)
        assert path.name in str(caught.value)
        assert len(str(caught.value)) < 1000
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\0" * 8, b"{}" * 10, struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", HEADER_LIMIT + 1) + b"{}",
     struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 4) + b"null", struct.pack("<Q", 100_000) + b"[" * 100_000],
)  # fmt: skip
def test_other_file_formats_are_refused(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(tmp_path / "a.safetensors")


def test_missing_files_and_folders_are_refused(tmp_path):
    refused(tmp_path / "missing.safetensors", "no such file")
    refused(tmp_path, "It is a folder")
    with pytest.raises(MuseumError):
        load_museum(tmp_path / "a\0b.safetensors")


def test_an_ordinary_lora_is_refused(tmp_path):
    save_file({"lora_unet_x.alpha": torch.ones(())}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "not a clora-museum file")


INNER = {
    "another family": (lambda m: m["base"].update(architecture="sd9"), "no model family 'sd9'"),
    "a family of another width": (lambda m: m["base"].update(architecture="sdxl"), "encoders|clip_g|vectors"),
    "no base": (lambda m: m.pop("base"), "no 'base'"),
    "an unknown entry": (lambda m: m.update(scope=1), "unknown entry 'scope'"),
    "an unknown dtype": (lambda m: m.update(dtype="float8"), "float8"),
    "another dtype": (lambda m: m.update(dtype="float16"), "dtype"),
    "no list": (lambda m: m.update(exhibits={}), "a list"),
    "exhibits of text": (lambda m: m.update(exhibits=["x"]), "an object"),
    "a word twice": (lambda m: m["exhibits"][1].update(word="<my-cat>"), "2 times"),
    "a bad word": (lambda m: m["exhibits"][0].update(word="a b"), "a b"),
    "no word": (lambda m: m["exhibits"][0].update(word=""), "The word is empty"),
    "a word of control characters": (lambda m: m["exhibits"][0].update(word="a\0"), "printable"),
    "half a character": (lambda m: m["exhibits"][0].update(prompt="\ud800"), "prompt"),
    "another kind": (lambda m: m["exhibits"][0].update(kind="smell"), "smell"),
    "a larger rank": (lambda m: m["exhibits"][0].update(rank=5), "shape"),
    "a rank that is none": (lambda m: m["exhibits"][0].update(rank=True), "an integer of at least 1"),
    "a negative rank": (lambda m: m["exhibits"][0].update(rank=-1), "an integer of at least 1"),
    "ranks shifted": (lambda m: (m["exhibits"][0].update(rank=3), m["exhibits"][2].update(rank=3)), "shape"),
    "an endless rank": (lambda m: m["exhibits"][0].update(rank=10**30), "an integer of at least 1"),
    "ranks of unknown paths": (lambda m: m["exhibits"][1].update(rank={"x": 3}), "unknown projection, 'x'"),
    "more words": (lambda m: m["exhibits"][0].update(words=2), "shape"),
    "more layers": (lambda m: m["exhibits"][0].update(layers=2), "missing"),
    "endless words": (lambda m: m["exhibits"][0].update(words=2**62), "shape"),
    "other encoders": (lambda m: m["exhibits"][0].update(encoders=["t5"]), "t5"),
    "facts that are a list": (lambda m: m["exhibits"][0].update(facts=[]), "an object"),
    "a thumbnail that is no base64": (lambda m: m["exhibits"][0].update(thumbnail="~~~"), "base64"),
    "a thumbnail that is no JPEG": (lambda m: m["exhibits"][0].update(thumbnail="R0lGODlh"), "not a JPEG"),
    "a thumbnail of many scans": (lambda m: m["exhibits"][0].update(thumbnail="/9j/2v/a" + "/9r/2v/a" * 9), "scans"),
    "a huge thumbnail": (lambda m: m["exhibits"][0].update(thumbnail="A" * 300_000), "thumbnail"),
    "steps as text": (lambda m: m["exhibits"][0]["recipe"].update(steps="many"), "steps"),
    "half a step": (lambda m: m["exhibits"][0]["recipe"].update(steps=1.5), "steps"),
    "a rank of true": (lambda m: m["exhibits"][0]["recipe"].update(rank=True), "rank"),
    "flip as text": (lambda m: m["exhibits"][0]["recipe"].update(flip="no"), "flip"),
    "a method that is a number": (lambda m: m["exhibits"][0]["recipe"].update(method=3), "method"),
    "a rate below zero": (lambda m: m["exhibits"][0]["recipe"].update(learning_rate=-1), "learning_rate"),
    "another schedule": (lambda m: m["exhibits"][0]["recipe"].update(schedule="later"), "schedule"),
    "an unknown number": (lambda m: m["exhibits"][0]["recipe"].update(magic=1), "magic"),
    "no regularizers": (lambda m: m["exhibits"][0]["recipe"].pop("regularizers"), "regularizers"),
    "regularizers of text": (lambda m: m["exhibits"][0]["recipe"].update(regularizers="ab"), "a list"),
    "a nameless regularizer": (lambda m: m["exhibits"][0]["recipe"].update(regularizers=[{}]), "name"),
    "an unknown regularizer": (lambda m: m["exhibits"][0]["recipe"].update(regularizers=[{"name": "x"}]), "'x'"),
    "a weight of true": (lambda m: m["exhibits"][0]["recipe"]["regularizers"][0].update(weight=True), "weight"),
    "a weight of text": (lambda m: m["exhibits"][0]["recipe"]["regularizers"][0].update(weight="1"), "weight"),
    "a short projection": (lambda m: m["projections"][0].pop(), "A projection"),
    "a strange path": (
        lambda m: json.dumps(m).replace("mid_block", "../../mid"),
        "not the path of a key or value",
    ),
    "the other role": (lambda m: m["projections"][0].__setitem__(1, "value"), "value"),
    "another height": (lambda m: m["projections"][0].__setitem__(2, 31), "shape"),
    "another width": (lambda m: m["projections"][0].__setitem__(3, 5), "width of 5"),
    "a projection twice": (lambda m: m["projections"].append(m["projections"][0]), "2 times"),
    "deep nesting": (lambda _: "[" * 200_000, "invalid JSON"),
    "deep facts": (
        lambda m: json.dumps(m).replace('"loss": 0.25', '"loss": ' + "[" * 50_000 + "]" * 50_000),
        "invalid JSON",
    ),
    "a repeated key": (lambda m: json.dumps(m).replace('"base"', '"dtype": "float32", "base"'), "a key is repeated"),
    "NaN": (lambda m: json.dumps(m).replace('"loss": 0.25', '"loss": NaN'), "finite"),
    "an infinite number": (lambda m: json.dumps(m).replace('"loss": 0.25', '"loss": 1e999'), "finite"),
    "digits without end": (lambda m: json.dumps(m).replace('"loss": 0.25', '"loss": ' + "9" * 100_000), "invalid JSON"),
    "no JSON": (lambda _: "museum", "invalid JSON"),
    "null": (lambda _: "null", "an object"),
}


@pytest.mark.parametrize("name", INNER)
def test_an_inconsistent_header_is_refused(name, tmp_path):
    change, match = INNER[name]
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    with_inner(path, change)
    refused(path, match)


def test_wrong_metadata_and_tensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    header, data = taken_apart(path)
    for change, match in (
        (lambda h: h["__metadata__"].update({"clora.version": "2"}), "version '2'.*Update"),
        (lambda h: h["__metadata__"].pop("clora.version"), "version None"),
        (lambda h: h["__metadata__"].pop("clora.museum"), "no 'clora.museum'"),
        (lambda h: h["__metadata__"].update({"clora.format": "x"}), "not a clora-museum"),
        (lambda h: h.pop("__metadata__"), "not a clora-museum"),
        (lambda h: h.update(stranger=h.pop("bundle_emb.lonely.string_to_param.*")), "missing"),
        (lambda h: h.update(stranger={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}), "stranger|whole"),
        (lambda h: h["bundle_emb.lonely.string_to_param.*"].update(shape=[768, 3]), "shape"),
        (lambda h: h["bundle_emb.lonely.string_to_param.*"].update(dtype="I32"), "dtype"),
    ):
        changed = json.loads(json.dumps(header))
        change(changed)
        put_together(path, changed, data)
        refused(path, match)


def test_a_lora_scale_that_is_not_one_is_refused(tmp_path):
    """Otherwise stock loaders and this one would give different pictures."""
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    header, data = taken_apart(path)
    start, end = next(entry["data_offsets"] for name, entry in header.items() if name.endswith(".alpha"))
    header["__metadata__"] = unsealed(header["__metadata__"])
    put_together(path, header, data[:start] + struct.pack("<f", 1.0) + data[end:])
    with pytest.raises(MuseumError, match=r"alpha' is 1\.0; it must be the rank"):
        load_museum(path)


@pytest.mark.parametrize(
    "inside",
    [
        ",".join(f'"k{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for number in range(1_000_000)),
        '"__metadata__":{"clora.format":"clora-museum","clora.version":"1","clora.museum":"[' + "1.5," * 10**7 + '1]"}',
        '"__metadata__":{"clora.format":"clora-museum","clora.version":"1","clora.museum":"[' + "{}," * 10**7 + '1]"}',
    ],
    ids=["a million tiny keys", "ten million numbers", "ten million objects"],
)
def test_a_header_with_millions_of_entries_is_refused_before_parsing(inside, tmp_path):
    text = f"{{{inside}}}".encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    began = time.process_time()
    refused(tmp_path / "a.safetensors", "entries; the limit is 1000000")
    assert time.process_time() - began < 1


def test_a_header_claiming_millions_of_tensors_is_refused_quickly(tmp_path):
    """A short header can claim a separate `up` for each of 4096 exhibits on each of 1024 projections."""
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)

    def claim(inner: dict) -> None:
        path, role, *shape = inner["projections"][0]
        many = [path.replace("blocks.0", f"blocks.{number}") for number in range(1024)]
        inner["projections"] = [[path, role, *shape] for path in many]
        template = {**inner["exhibits"][0], "strength": 2.0, "rank": 1}
        inner["exhibits"] = [{**template, "word": f"<w{number}>"} for number in range(4096)]

    with_inner(path, claim)
    began = time.process_time()
    refused(path, "shape|missing")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m["exhibits"].extend([m["exhibits"][3]] * 4100), "at most 4096 exhibits"),
        (lambda m: m["projections"].extend([m["projections"][0]] * 1100), "at most 1024 projections"),
        (lambda m: m["exhibits"][0].update(strength="1"), "strength"),
        (lambda m: m["exhibits"][0]["recipe"].update({"a" * 5000: 1}), "aaaa"),
    ],
)
def test_too_many_entries_and_invalid_values_are_refused(change, match, tmp_path):
    path = tmp_path / "a.safetensors"
    save_museum(museum(), path)
    with_inner(path, change)
    refused(path, match)
