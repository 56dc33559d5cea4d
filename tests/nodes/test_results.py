"""The store of learned results: what goes in comes out, and it stays within its limit."""

import base64
import io
import multiprocessing
import os
import random
import shutil
import struct
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clora_bare.clora_core.errors import MuseumError
from clora_bare.clora_core.learning.state import LearningState, StateError
from clora_bare.clora_core.method.recipe import Recipe
from clora_bare.clora_core.model.base import Fingerprint
from clora_bare.clora_core.model.concept import ConceptToken
from clora_bare.clora_core.model.low_rank import LowRank
from clora_bare.clora_core.model.projections import Projection
from clora_bare.clora_core.museum.museum import Exhibit
from clora_bare.nodes.actions import results
from clora_bare.nodes.actions.pictures import in_8_bits
from clora_bare.nodes.actions.results import DIARY, LOSSES, PICTURES, Result, Store
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.museums import put_together, taken_apart, unsealed, with_inner

BASE = Fingerprint("starter", "0" * 64)
PROJECTION = Projection("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "key", (64, 128))
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def made(seed: int = 0) -> Result:
    rng = torch.Generator().manual_seed(seed)
    delta = LowRank(torch.randn(64, 2, generator=rng), torch.randn(2, 128, generator=rng))
    token = ConceptToken("<cat>", {"clip_l": torch.randn(1, 1, 128, generator=rng)})
    facts = {"pictures": 3, "date": "2026-01-02T03:04:05+00:00"}
    exhibit = Exhibit(token, {PROJECTION: delta}, Recipe(), "object", "a photo of <cat>", facts, b"\xff\xd8jpeg")
    pictures = in_8_bits(torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1)
    return Result((exhibit,), (0.5, 0.25, 0.125), pictures)


def state(step: int = 1) -> LearningState:
    return LearningState(A, step, {"trained.x": torch.arange(4.0)}, (0.5,) * step)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "not yet there")


def test_empty_store_has_no_results(store: Store):
    assert store.result(A) is None and store.state(A) is None


def test_result_is_read_back_unchanged(store: Store):
    result = made()
    store.keep(A, BASE, result)
    found = store.result(A)
    assert found is not None and store.result(B) is None
    assert found.losses == result.losses
    assert torch.equal(found.pictures, result.pictures)
    assert found.exhibits[0].facts == result.exhibits[0].facts and found.exhibits[0].thumbnail == b"\xff\xd8jpeg"
    assert found.exhibits[0].recipe == result.exhibits[0].recipe and found.exhibits[0].word == "<cat>"
    assert torch.equal(found.exhibits[0].deltas[PROJECTION].up, result.exhibits[0].deltas[PROJECTION].up)
    assert torch.equal(found.exhibits[0].token.vectors["clip_l"], result.exhibits[0].token.vectors["clip_l"])


def test_state_is_kept_until_the_result_is_stored(store: Store):
    store.keep_state(A, state(1))
    store.keep_state(A, state(2))
    found = store.state(A)
    assert found is not None and found.step == 2 and torch.equal(found.tensors["trained.x"], torch.arange(4.0))
    store.keep(A, BASE, made())
    assert store.state(A) is None and len(list(store.folder.iterdir())) == 1


def test_over_the_limit_the_least_recently_used_are_deleted(store: Store):
    for age, key in enumerate((A, B, C)):
        store.keep(key, BASE, made(age))
        os.utime(store.folder / f"{key}.result.safetensors", (1000 + age, 1000 + age))
    size = max(path.stat().st_size for path in store.folder.iterdir())
    assert store.result(A) is not None  # used now, so B is the oldest
    small = Store(store.folder, limit_bytes=3 * size)
    small.keep("d" * 64, BASE, made(4))
    assert small.result(B) is None
    assert all(small.result(key) is not None for key in (A, C, "d" * 64))


def test_limit_grows_with_the_free_disk_space(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "LIMIT_BYTES", 1)
    store.keep(A, BASE, made())
    store.keep(B, BASE, made())
    assert store.result(A) is not None, "this disk has more than a few kilobytes free"
    full = shutil.disk_usage(store.folder)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    store.keep(C, BASE, made())
    assert store.result(A) is None and store.result(B) is None and store.result(C) is not None


def test_newest_file_stays_even_over_the_limit(store: Store):
    tiny = Store(store.folder, limit_bytes=1)
    tiny.keep(A, BASE, made())
    assert tiny.result(A) is not None
    tiny.keep(B, BASE, made())
    assert tiny.result(A) is None and tiny.result(B) is not None


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 4000])
def test_damaged_file_is_set_aside_and_reported(store: Store, caplog: pytest.LogCaptureFixture, damage):
    store.keep(A, BASE, made())
    store.keep_state(B, state())
    for key, kind, ask in ((A, "result", store.result), (B, "state", store.state)):
        path = store.folder / f"{key}.{kind}.safetensors"
        path.write_bytes(broken := damage(path.read_bytes()))
        assert ask(key) is None and not path.exists()
        assert (store.folder / f"{path.name}.damaged").read_bytes() == broken
        assert f"set aside as '{path.name}.damaged', and the training starts over" in caplog.text
        assert ask(key) is None


def test_flipped_bit_is_detected_or_harmless(store: Store):
    """In tensors, losses, pictures, facts and the diary."""
    result, before = replace(made(), diary={"curves": {"loss": [[1.0, 0.5]]}}), state(3)
    store.keep(A, BASE, result)
    store.keep_state(B, before)
    rng, seen = random.Random(0), {"result": 0, "state": 0}
    files = {kind: store.folder / f"{key}.{kind}.safetensors" for key, kind in ((A, "result"), (B, "state"))}
    raws = {kind: path.read_bytes() for kind, path in files.items()}
    for _ in range(100):
        for kind, raw in raws.items():
            changed = bytearray(raw)
            changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            files[kind].write_bytes(changed)
        found, begun = store.result(A), store.state(B)
        if found is None:
            seen["result"] += 1
        else:
            assert (found.losses, found.diary) == (result.losses, result.diary)
            assert found.exhibits[0].same_as(result.exhibits[0]) and torch.equal(found.pictures, result.pictures)
            assert found.exhibits[0].facts == result.exhibits[0].facts
        if begun is None:
            seen["state"] += 1
        else:
            assert (begun.key, begun.step, begun.losses) == (before.key, before.step, before.losses)
            assert torch.equal(begun.tensors["trained.x"], before.tensors["trained.x"]) and len(begun.tensors) == 1
    assert seen["result"] > 80 and seen["state"] > 80


def test_files_set_aside_count_towards_the_limit(store: Store):
    store.keep(A, BASE, made())
    aside = store.folder / f"{A}.result.safetensors.damaged"
    os.replace(store.folder / f"{A}.result.safetensors", aside)
    os.utime(aside, (1000, 1000))
    store.keep(B, BASE, made(1))
    assert aside.exists()
    Store(store.folder, limit_bytes=1).keep(C, BASE, made(2))
    assert [path.name for path in store.folder.iterdir()] == [f"{C}.result.safetensors"]


def test_files_without_a_hash_are_accepted(store: Store):
    store.keep(A, BASE, made())
    store.keep_state(B, state())
    for path in store.folder.iterdir():
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}
        assert metadata.pop("clora.hash")
        save_file(tensors, path, metadata)
    assert store.result(A) is not None and store.state(B) is not None


def png(*sizes: tuple[int, int]) -> list[str]:
    encoded = []
    for size in sizes:
        Image.new("RGB", size).save(buffer := io.BytesIO(), "PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return encoded


def claiming(side: int) -> str:
    """A small file of a picture that is none."""
    start, size = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13),
        b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0),
    )
    raw = base64.b64decode(png((8, 8))[0])
    return base64.b64encode(start + size + struct.pack(">I", zlib.crc32(size)) + raw[33:]).decode()


def without_end() -> str:
    raw = base64.b64decode(png((64, 64))[0])
    place = raw.index(b"IDAT")
    return base64.b64encode(raw[: place - 4] + b"\0\0\0\0" + b"\1\2\3\4" + raw[place + 4 :]).decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (PICTURES, []),
        (PICTURES, png((64, 64), (64, 32))),
        (PICTURES, png(*[(8000, 4000)] * 3)),
        (PICTURES, [claiming(2**16)]),
        (PICTURES, [without_end()]),
        (PICTURES, 5),
        (LOSSES, [10**400]),
        (LOSSES, ["nan"]),
        (DIARY, [1]),
        (DIARY, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_result_without_a_hash_does_not_block_a_run(store: Store, name: str, value: object):
    store.keep(A, BASE, made())
    path = store.folder / f"{A}.result.safetensors"
    with_inner(path, lambda inner: inner["exhibits"][-1]["facts"].update({name: value}))
    header, data = taken_apart(path)
    put_together(path, {**header, "__metadata__": unsealed(header["__metadata__"])}, data)
    assert store.result(A) is None and not path.exists()


def test_state_that_does_not_fit_is_set_aside(store: Store, caplog: pytest.LogCaptureFixture):
    store.keep_state(A, state())
    store.refuse_state(A, state(), StateError("This saved state is damaged."))
    assert store.state(A) is None and "This saved state is damaged. It is set aside as" in caplog.text


@pytest.mark.parametrize("own", [1, 3])
def test_the_state_that_was_read_is_set_aside_and_no_other(store: Store, own: int):
    """There is one of an interrupted run, and another that was kept at a step."""
    store.keep_state(A, state(own))
    store.keep_state_along(A, state(2))
    found = store.furthest_state(A, 3)
    assert found is not None and found.step == max(own, 2)
    store.refuse_state(A, found, StateError("This saved state is damaged."))
    left = store.furthest_state(A, 3)
    assert left is not None and left.step == min(own, 2)


def test_kept_state_with_the_name_of_another_step_is_not_resumed(store: Store):
    store.keep_state_along(A, state(2))
    found = store.furthest_state(A, 3)
    assert found is not None and found.step == 2
    (path,) = store.kept.folder.iterdir()
    path.rename(path.with_name(path.name.replace(".2.", ".3.")))
    assert store.furthest_state(A, 3) is None


@pytest.mark.parametrize(
    "refusal",
    [
        OSError(24, "Too many open files"),
        RuntimeError("unable to open file in read-only mode: Too many open files (24)"),  # as torch says it
        RuntimeError("DefaultCPUAllocator: can't allocate memory: MemoryError"),
        MemoryError(),
    ],
)
def test_unreadable_state_is_kept_and_not_overwritten(
    store: Store, monkeypatch: pytest.MonkeyPatch, refusal: Exception
):
    """Training again would cost hours, and its first autosave would overwrite the unfinished state."""
    from clora_bare.clora_core.museum.file import files

    def refuse(path: Path) -> None:
        raise refusal

    store.keep(A, BASE, made())
    store.keep_state(B, state())
    with monkeypatch.context() as patched:
        patched.setattr(files, "_check_size", refuse)
        for read, key in ((store.result, A), (store.state, B)):
            with pytest.raises(MuseumError, match=r"Too many open files|MemoryError"):
                read(key)
    assert store.result(A) is not None and store.state(B) is not None


def test_museum_without_losses_is_no_result(store: Store, caplog: pytest.LogCaptureFixture):
    from clora_bare.clora_core.museum.file import save_museum
    from clora_bare.clora_core.museum.museum import Museum

    store.folder.mkdir()
    save_museum(Museum(BASE, made().exhibits), store.folder / f"{A}.result.safetensors")
    assert store.result(A) is None and "losses or pictures are missing" in caplog.text


def test_unwritable_disk_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    blocked = Store(tmp_path / "file" / "results")
    blocked.keep(A, BASE, made())
    blocked.keep_state(A, state())
    assert caplog.text.count("cannot be stored") == 2


def test_file_in_place_of_the_folder_is_reported(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "results"):
        store = Store(folder)
        assert str(folder) in store.refusal and "retrains" in store.refusal and store.refusal.count(". ") == 0
        assert store.result(A) is None and store.state(A) is None
    assert not Store(tmp_path / "free").refusal


@pytest.mark.skipif(os.name != "posix", reason="has other rights")
def test_folder_of_another_user_is_reported_and_stops_nothing():
    """In a process of another user, with a folder that they cannot enter and one that they can only read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for mode in (0o700, 0o755):
        place = folder / f"{mode:o}"
        Store(place).keep(A, BASE, made())
        (place / f"{A}.result.safetensors").chmod(0o600)
        place.chmod(mode)
    process = multiprocessing.get_context("fork").Process(target=asked_by_somebody_else, args=(folder,))
    process.start()
    process.join()
    shutil.rmtree(folder)
    assert process.exitcode == 0


def asked_by_somebody_else(folder: Path) -> None:
    torch.set_num_threads(1)
    if os.geteuid() == 0:
        os.setuid(65534)  # nobody
        for mode in ("700", "755"):
            store = Store(folder / mode)
            assert store.result(A) is None and store.state(B) is None
            store.keep(A, BASE, made())
            store.keep_state(B, state())
            assert "results cannot be stored in" in store.refusal
    os._exit(0)
