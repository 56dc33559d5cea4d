"""`bench museum`: the cost of opening, loading, viewing and extending museum files of different sizes.

Every operation is compared with a naive implementation in the same process, so the ratios are valid on any machine.
"""

import argparse
import ctypes
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from ..commands.progress import Say
from ..model.base import Fingerprint
from ..model.concept import ConceptToken
from ..model.families import family_named, find_projections
from ..museum.file import append_exhibits, load_museum, load_view, museum_file, read_header, save_museum
from ..museum.museum import Exhibit
from .measuring import STATUS, Shape, machine, random_museum
from .runs import write_json

# Operation → the naive implementation that it is compared with.
AGAINST = {
    "header": "parsing its JSON unchecked",
    "load": "loading without comparing the hash",
    "one": "loading all exhibits",
    "view": "loading all exhibits and adding them up",
    "append": "copying the file",
}


@dataclass(frozen=True)
class Cost:
    """Processor seconds, the least of several rounds; and bytes of additional memory, without the file's own pages."""

    seconds: float
    peak_bytes: int | None


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "museum",
        help="opening, loading, viewing and extending museums of many exhibits",
        description="Measure museum files of Stable Diffusion 1.5's shape at different sizes: "
        + ", ".join(f"{name} against {naive}" for name, naive in AGAINST.items())
        + ". Memory is measured on Linux only.",
    )
    parser.add_argument("--exhibits", type=int, nargs="+", default=[1, 10, 100, 1000], help="sizes (1 10 100 1000)")
    parser.add_argument("--rank", type=int, default=2, help="rank of every delta (2); 1000 exhibits take 0.2 GB a rank")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (3)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    say(f"Museums of SD1.5's shape, rank {arguments.rank}; processor time. In brackets: the ratio to the naive way.\n")
    say("exhibits      MiB" + "".join(f"{name:>19}" for name in AGAINST) + "     peak MiB: view, append")
    base, rows = sd15_shape(), []
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.exhibits:
            path = Path(folder, "museum.safetensors")
            save_museum(random_museum(base, count, arguments.rank), path, overwrite=True)
            rows.append(row := {"exhibits": count, "bytes": path.stat().st_size, **costs_of(path, arguments.rounds)})
            say(_line(row))
    if arguments.json:
        settings = {"rank": arguments.rank, "rounds": arguments.rounds, "against": AGAINST}
        report = {"machine": machine(torch.device("cpu")), "settings": settings, "museums": rows}
        write_json(arguments.json, report)


def costs_of(path: Path, rounds: int) -> dict[str, dict[str, float | int | None]]:
    """Operation → its cost, and that of the naive implementation."""
    header = read_header(path)
    word = header.words[-1]
    new = load_museum(path, words=[word]).exhibits[0]
    grown, copy = path.with_name("grown.safetensors"), path.with_name("copy.safetensors")
    renamed = Exhibit(ConceptToken("<new>", new.token.vectors), new.deltas, new.recipe)

    pairs: Mapping[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "header": (lambda: read_header(path), lambda: _unchecked(path)),
        "load": (lambda: load_museum(path), lambda: _unhashed(path)),
        "one": (lambda: load_museum(path, words=[word]), lambda: load_museum(path)),
        "view": (lambda: load_view(path), lambda: load_museum(path).dense()),
        "append": (
            lambda: append_exhibits([renamed], grown, base=header.base),
            lambda: shutil.copy(path, copy),
        ),
    }
    costs = {}
    for name, (ours, naive) in pairs.items():
        restore = (lambda: shutil.copy(path, grown)) if name == "append" else None
        cost, other = cost_of(ours, rounds, restore), cost_of(naive, rounds)
        naive_cost = {f"naive_{key}": value for key, value in vars(other).items()}
        costs[name] = {**vars(cost), **naive_cost, "ratio": cost.seconds / other.seconds}
    return costs


def cost_of(work: Callable[[], object], rounds: int, before: Callable[[], object] | None = None) -> Cost:
    """The cost of the work. `before` runs before every round and is not measured."""
    seconds = []
    for _ in range(rounds):
        if before:
            before()
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    if before:
        before()
    return Cost(min(seconds), _peak(work))


def sd15_shape() -> Shape:
    """Stable Diffusion 1.5's UNet without its weights."""
    with torch.device("meta"):
        slots = find_projections(UNet2DConditionModel(cross_attention_dim=768))
    return Shape(Fingerprint("sd15", "0" * 64), family_named("sd15"), slots)


def _unchecked(path: Path) -> object:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["clora.museum"])


def _unhashed(path: Path) -> object:
    with mock.patch.object(museum_file, "undamaged", lambda path, file: nullcontext()):
        return load_museum(path)


def _peak(work: Callable[[], object]) -> int | None:
    """The peak of additional memory during the work, without the pages of mapped files."""
    if not STATUS.exists():
        work()
        return None
    with suppress(OSError, AttributeError):  # freed memory that the C library keeps would hide new allocations
        ctypes.CDLL(None).malloc_trim(0)
    before, most, done = _anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _anonymous_bytes())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0, most - before)


def _anonymous_bytes() -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def _line(row: Mapping[str, object]) -> str:
    def cell(name: str) -> str:
        cost: Mapping[str, float] = row[name]  # type: ignore[assignment]
        return f"{1000 * cost['seconds']:8.1f} ms ({cost['ratio']:4.2f})"

    def peak(names: Sequence[str]) -> str:
        peaks = [row[name]["peak_bytes"] for name in names]  # type: ignore[index]
        return ", ".join("?" if value is None else f"{value / 2**20:.0f}" for value in peaks)

    costs = " ".join(cell(name) for name in AGAINST)
    return f"{row['exhibits']:8} {row['bytes'] / 2**20:8.1f} {costs}     {peak(('view', 'append'))}"  # type: ignore[operator]
