"""Ten thousand broken files raise only MuseumError: fast, with little memory, and without touching other files."""

import gc
import io
import json
import multiprocessing
import os
import pickle
import random
import string
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from clora_core.errors import MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.museum.file import append_exhibits, load_museum, load_view, read_header, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Exhibit, Museum
from tests.museums import exhibit, museum, projections, put_together, taken_apart, unsealed

FILES = 10_000
AT_ONCE = 10  # files per example of hypothesis
SECONDS = 10.0  # of processor time for one file; code that is quadratic in its length takes far longer
PEAK_BYTES = 64 * 2**20  # by which the memory may grow while one file is read

SPECIAL: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 1.5, -0.0, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**40, -(10**40)),
    *(float("nan"), float("inf"), 5e-324, 1e308, "", "x", "<my-cat>", "<ink>", "\0", "\ud800", "𝔘", "../../x", "F32"),
    *("float16", "I8", "sdxl", "clora-museum", "2", "a" * 5000, "A" * 300_000, [], {}, [[]], {"": {}}, [{}] * 50),
)
PIECES = ('"', "{", "}", "[", "]", ",", ":", "\\", "\\u0000", "\\ud800", "NaN", "1e999", "-", "\t", "\x00", "9" * 50)


@dataclass(frozen=True)
class Whole:
    """An intact file: all of its bytes, its header, and its data."""

    raw: bytes
    header: dict[str, Any]
    data: bytes

    @property
    def inner(self) -> str:
        return self.header["__metadata__"]["clora.museum"]

    def with_inner(self, text: str) -> bytes:
        metadata = {**self.header["__metadata__"], "clora.museum": text}
        return framed(json.dumps({**self.header, "__metadata__": metadata}), self.data)


def framed(header: str, data: bytes) -> bytes:
    text = header.encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def places(tree: object) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON tree, with each of its keys or indices."""
    pending = [tree]
    while pending:
        node = pending.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            yield node, key
            pending.append(node[key])


def with_changed_values(source: str, rng: random.Random) -> str:
    """The JSON text with one to three of its values replaced, removed, renamed, repeated or exchanged."""
    tree = json.loads(source)
    for _ in range(rng.randint(1, 3)):
        found = list(places(tree))
        (node, key), (other, place) = rng.choice(found), rng.choice(found)
        match rng.randrange(6):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice([*node, "x", "", "a" * 3000])] = node.pop(key)
            case 1 if isinstance(node, list):
                node.insert(rng.randint(0, len(node)), node[key])
            case 2 if type(node[key]) is int:
                node[key] += rng.choice((-2, -1, 1, 2))
            case 3 if type(other[place]) not in (dict, list):
                node[key] = other[place]
            case _:
                node[key] = rng.choice(SPECIAL)
    return json.dumps(tree)


def broken_text(text: str, rng: random.Random) -> str:
    """Invalid or unusual JSON."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(text))
        text = text[:place] + rng.choice(PIECES) + text[place + rng.randint(0, 3) :]
    return text


def with_flipped_bits(whole: Whole, rng: random.Random) -> bytes:
    raw = bytearray(whole.raw)
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw) - len(whole.data))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def with_odd_numbers(whole: Whole, rng: random.Random) -> bytes:
    data = bytearray(whole.data)
    for _ in range(rng.randint(1, 3)):
        number = rng.choice((float("nan"), float("inf"), float("-inf"), 3e38, -1.0))
        struct.pack_into("<f", data, 4 * rng.randrange(len(data) // 4), number)
    return framed(json.dumps(whole.header), bytes(data))


def deeply_nested(whole: Whole, rng: random.Random) -> bytes:
    nested = rng.choice(("[", '{"a":', '[{"b":')) * rng.randint(1, 20_000)
    return whole.with_inner(rng.choice((nested, whole.inner.replace("{", '{"x":' + nested, 1))))


def with_many_tensors(whole: Whole, rng: random.Random) -> bytes:
    entry = {"dtype": rng.choice(("F32", "U8", "F8_E4M3")), "shape": [0], "data_offsets": [0, 0]}
    name = "".join(rng.choices(string.printable, k=4))
    return framed(
        json.dumps({**whole.header, **{f"{name}{n}": entry for n in range(rng.choice((1, 9, 3000)))}}), whole.data
    )


def pickled(whole: Whole, rng: random.Random) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return rng.choice((pickle.dumps(Path("/etc/passwd")), archive.getvalue(), b"PK\3\4", b"\x80\x02}q\x00."))


MUTATIONS: tuple[Callable[[Whole, random.Random], bytes], ...] = (
    lambda whole, rng: rng.randbytes(rng.randrange(300)),
    lambda whole, rng: whole.raw[: rng.randrange(len(whole.raw))],
    lambda whole, rng: whole.raw + rng.randbytes(rng.randint(1, 64)),
    lambda whole, rng: struct.pack("<Q", rng.getrandbits(rng.choice((8, 16, 26, 64)))) + whole.raw[8:],
    lambda whole, rng: framed(broken_text(json.dumps(whole.header), rng), whole.data),
    lambda whole, rng: whole.with_inner(broken_text(whole.inner, rng)),
    lambda whole, rng: framed(with_changed_values(json.dumps(whole.header), rng), whole.data),
    *(with_flipped_bits, with_odd_numbers, deeply_nested, with_many_tensors, pickled),
    *[lambda whole, rng: whole.with_inner(with_changed_values(whole.inner, rng))] * 8,
)


def broken_file(whole: Whole, seed: int) -> bytes:
    """The broken file of that seed."""
    rng = random.Random(seed)
    return rng.choice(MUTATIONS)(whole, rng)


class Watch:
    """Records what this process opens or changes outside of a folder while it is on."""

    CHANGES = ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
    FOREIGN = ("subprocess", "socket", "os.system", "os.exec", "os.posix_spawn", "shutil", "ctypes.dlopen")

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.on = False
        self.unexpected: list[tuple[str, object]] = []
        sys.addaudithook(self.record)

    def record(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not (event == "open" or event in self.CHANGES or event.startswith(self.FOREIGN)):
            return
        path = os.fsdecode(arguments[0]) if arguments and isinstance(arguments[0], (str, bytes)) else ""
        reads_code = event == "open" and path.endswith((".py", ".pyc"))  # a module is imported
        if not reads_code and not path.startswith(self.folder):
            self.unexpected.append((event, arguments))


class Memory:
    """The peak memory of this process since the last `begin`; only on Linux."""

    def __init__(self) -> None:
        self.available = Path("/proc/self/clear_refs").exists()

    def begin(self) -> None:
        if self.available:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = self.read("VmRSS")

    def grown(self) -> int:
        return self.read("VmHWM") - self.before if self.available else 0

    def read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def small_museum() -> Museum:
    """An ordinary exhibit, one with a strength, and a gated one."""
    on, own = projections("starter", 8)[:4], {"architecture": "starter"}
    cat = exhibit("<my-cat>", on, seed=1, ranks=(1,), facts={"a": [1, {}]}, thumbnail=b"\xff\xd8", **own)
    ink = exhibit("<ink>", on[1:3], seed=2, ranks=(2, 1), words=2, strength=0.5, **own)
    gated = exhibit("<shy>", on[:1], seed=3, ranks=(1,), recipe=recipe_named("word-gated"), **own)
    return Museum(museum("starter").base, (cat, ink, gated))


def appended(path: Path, addition: Exhibit) -> None:
    before = path.read_bytes()
    try:
        append_exhibits([addition], path, base=small_museum().base)
    except MuseumError:
        assert path.read_bytes() == before
        raise


def fuzz(folder: Path) -> dict[str, int]:
    """Read ten thousand broken files in every way. Returns how many were refused, and how many were valid after all."""
    path = folder / "a.safetensors"
    save_museum(small_museum(), path)
    header, data = taken_apart(path)
    header["__metadata__"] = unsealed(header["__metadata__"])  # an attacker would write a matching hash
    put_together(path, header, data)
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    whole = Whole(raw, json.loads(raw[8 : 8 + size]), raw[8 + size :])
    addition = exhibit("<new>", projections("starter", 8)[:2], seed=3, architecture="starter")
    watch, memory, rng = Watch(folder), Memory(), random.Random(0)
    outcomes = {"refused": 0, "whole": 0}

    def refused(read: Callable[[Path], object]) -> bool:
        memory.begin()
        began = time.process_time()
        watch.on = True
        try:
            read(path)
        except MuseumError as error:
            assert str(error).startswith("a.safetensors") and len(str(error)) < 1000
            return True
        finally:
            watch.on = False
            assert time.process_time() - began < SECONDS
            assert memory.grown() < PEAK_BYTES
            assert not watch.unexpected, watch.unexpected
        return False

    def check(seeds: list[int]) -> None:
        for seed in seeds:
            path.write_bytes(broken_file(whole, seed))
            broken = refused(load_museum)
            outcomes["refused" if broken else "whole"] += 1
            if not broken:
                assert not refused(read_header)
            if not broken or seed % 4 == 0:
                refused(rng.choice((load_view, lambda path: appended(path, addition))))

    seeds = st.lists(st.integers(0, 2**48), min_size=AT_ONCE, max_size=AT_ONCE)
    settings = hypothesis.settings(
        max_examples=FILES // AT_ONCE,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    settings(hypothesis.given(seeds)(check))()
    assert set(folder.iterdir()) <= {path, *backups_of(path)}
    return outcomes


def in_own_process(folder: Path) -> None:
    gc.freeze()  # objects of earlier tests are not collected again and again
    torch.set_num_threads(1)
    outcomes = fuzz(folder)
    assert sum(outcomes.values()) >= FILES and outcomes["refused"] > 0.7 * FILES and outcomes["whole"] > 0.02 * FILES


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks a process to watch it")
def test_ten_thousand_broken_files_raise_only_museum_errors(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=in_own_process, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
