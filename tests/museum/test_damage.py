"""A single wrong bit is noticed when the whole file is read, and damaged files are not used."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from clora_core.cli import main
from clora_core.errors import MuseumError
from clora_core.museum.file import append_exhibits, load_museum, load_view, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Museum
from tests.museums import assert_same, exhibit, museum, projections, put_together, taken_apart, unsealed

SMALL = museum("starter")
NEW = exhibit("<new>", projections("starter"), seed=9, architecture="starter")
FLIPS = 40  # of every part of a file


def append(path: Path) -> None:
    append_exhibits([NEW], path, base=SMALL.base)


def damaged(raw: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    return bytes(changed)


def parts(raw: bytes) -> dict[str, range]:
    """The length, the metadata, the list of tensors, and the tensors."""
    end = 8 + int.from_bytes(raw[:8], "little")
    middle = raw.index(b"}", raw.index(b'"modelspec.hash_sha256"'))
    return {"length": range(8), "metadata": range(8, middle), "list": range(middle, end), "data": range(end, len(raw))}


@pytest.mark.parametrize("part", ["length", "metadata", "list", "data"])
def test_a_flipped_bit_is_detected_or_has_no_effect(part: str, tmp_path: Path):
    """It has no effect in the metadata for other programs, which loading ignores and appending rewrites."""
    path, rng = tmp_path / "a.safetensors", random.Random(part)
    save_museum(SMALL, path)
    raw, detected = path.read_bytes(), 0
    for _ in range(FLIPS):
        path.write_bytes(damaged(raw, rng.choice(parts(raw)[part]), rng.randrange(8)))
        try:
            loaded = load_museum(path)
        except MuseumError:
            detected += 1
            with pytest.raises(MuseumError):
                append(path)
            with pytest.raises(MuseumError):
                load_view(path)
        else:
            assert_same(SMALL, loaded)
            append(path)
            assert_same(replace(SMALL, exhibits=(*SMALL.exhibits, NEW)), load_museum(path))
    assert detected > 5 if part == "metadata" else detected == FLIPS


def save_damaged(path: Path, intact: Museum = SMALL) -> None:
    save_museum(intact, path, overwrite=True)
    raw = path.read_bytes()
    path.write_bytes(damaged(raw, len(raw) - 4, 3))


def test_the_error_about_damage_names_the_backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.safetensors"
    save_damaged(path)
    for use in (load_museum, load_view, append):
        with pytest.raises(MuseumError, match=r"^a\.safetensors: The file is damaged.*Use another copy of it"):
            use(path)
    (tmp_path / "a.bak.safetensors").write_bytes(b"")
    with pytest.raises(MuseumError, match=r"damaged.*Its backup 'a\.bak\.safetensors' may be intact"):
        load_museum(path)
    save_museum(SMALL.only(["<ink>"]), path, overwrite=True)
    save_damaged(path)
    newest = backups_of(path)[-1]
    before = path.read_bytes()
    with pytest.raises(MuseumError, match=rf"damaged.*'{re.escape(newest.name)}' may be intact"):
        load_museum(path)
    assert load_museum(newest).words == ("<ink>",)
    assert main(["edit", str(path), "--remove", "<ink>"]) == 1
    assert "is damaged" in capsys.readouterr().err and path.read_bytes() == before


def test_one_exhibit_can_be_loaded_from_a_damaged_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_damaged(path)
    assert_same(SMALL.only(["<ink>"]), load_museum(path, words=["<ink>"]))


def test_older_files_are_checked_by_the_hash_of_their_tensors(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_museum(SMALL, path)
    header, data = taken_apart(path)
    del header["__metadata__"]["clora.hash"]
    put_together(path, header, data)
    assert_same(SMALL, load_museum(path))
    put_together(path, header, damaged(data, len(data) - 4, 3))
    with pytest.raises(MuseumError, match="is damaged"):
        load_museum(path)


def test_metadata_changed_by_other_programs_is_not_reported_as_damage(tmp_path: Path):
    """They change entries of their own, or drop all hashes."""
    path = tmp_path / "a.safetensors"
    save_museum(SMALL, path)
    header, data = taken_apart(path)
    header["__metadata__"] |= {"modelspec.title": "Zoo", "ss_output_name": "zoo", "sshs_model_hash": "0" * 64}
    put_together(path, dict(reversed(header.items())), data)
    assert_same(SMALL, load_museum(path))
    header["__metadata__"] = unsealed(header["__metadata__"])
    put_together(path, header, data)
    assert_same(SMALL, load_museum(path))
