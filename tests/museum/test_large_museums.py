"""A museum of a thousand exhibits for SD1.5: reading the header, one exhibit, and the view, and appending."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clora_core.method.recipe import recipe_named
from clora_core.model.base import Fingerprint
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.file import append_exhibits, load_museum, load_view, museum_file, read_header, save_museum
from clora_core.museum.museum import Exhibit, Museum

COUNT = 1000
BASE = Fingerprint("sd15", "0123abcd" * 8)
LEVELS = [*[f"down_blocks.{n}.attentions.{i}" for n in range(3) for i in range(2)], "mid_block.attentions.0"]
LEVELS += [f"up_blocks.{n}.attentions.{i}" for n in (1, 2, 3) for i in range(3)]
HEIGHTS = [320, 320, 640, 640, 1280, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3]
PROJECTIONS = [
    Projection(f"{level}.transformer_blocks.0.attn2.to_{role[0]}", role, (height, 768))
    for level, height in zip(LEVELS, HEIGHTS, strict=True)
    for role in ("key", "value")
]
DENSE_BYTES = sum(4 * rows * columns for rows, columns in (projection.shape for projection in PROJECTIONS))
SLACK_BYTES = 48 * 2**20

Factors = dict[Projection, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def factors() -> Factors:
    """projection → up (out, COUNT) and down (COUNT, in): exhibit number i has the i-th column and row."""
    rng = torch.Generator().manual_seed(0)
    return {
        projection: (
            torch.randn(projection.shape[0], COUNT, generator=rng),
            torch.randn(COUNT, projection.shape[1], generator=rng),
        )
        for projection in PROJECTIONS
    }


@pytest.fixture(scope="module")
def path(factors: Factors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "a.safetensors"
    save_museum(Museum(BASE, tuple(numbered(factors, number) for number in range(COUNT))), path)
    yield path
    path.unlink()


def numbered(factors: Factors, number: int) -> Exhibit:
    """The exhibit of that number, of rank 1."""
    row = slice(number, number + 1)
    deltas = {p: LowRank(up[:, row].contiguous(), down[row].contiguous()) for p, (up, down) in factors.items()}
    token = ConceptToken(f"<word-{number}>", {"clip_l": torch.full((1, 1, 768), float(number))})
    facts = {"date": "2024-05-06T07:08:09+00:00", "pictures": 5, "loss": 0.125}
    prompt = f"a photo of <word-{number}>"
    return Exhibit(token, deltas, recipe_named("c-lora", rank=1), prompt=prompt, facts=facts, thumbnail=b"\xff\xd8\xff")


def test_the_projections_have_the_sizes_of_sd15():
    assert len(PROJECTIONS) == 32 and DENSE_BYTES == 4 * 19_169_280


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least processor time of a few tries, so that other load hardly matters."""
    seconds = []
    for _ in range(7):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def test_reading_the_header_takes_a_few_times_as_long_as_parsing_its_json(path):
    """Measured: 4 to 5 times what Python's json takes, about 35 ms, with the shape of every tensor checked."""

    def unchecked() -> object:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["clora.museum"])

    header = read_header(path)
    assert len(header.exhibits) == COUNT and header.projections == tuple(sorted(PROJECTIONS))
    assert cpu_seconds(lambda: read_header(path)) < 12 * cpu_seconds(unchecked)


class Counted:
    """An open file that counts the bytes read from it."""

    def __init__(self, file: safe_open) -> None:
        self.file = file
        self.read = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def get_tensor(self, name: str) -> Tensor:
        return self.count(self.file.get_tensor(name))

    def get_slice(self, name: str) -> "CountedSlice":
        return CountedSlice(self, self.file.get_slice(name))

    def count(self, tensor: Tensor) -> Tensor:
        self.read += tensor.numel() * tensor.element_size()
        return tensor


class CountedSlice:
    def __init__(self, file: Counted, tensor: object) -> None:
        self.file, self.tensor = file, tensor

    def __getattr__(self, name: str) -> object:
        return getattr(self.tensor, name)

    def __getitem__(self, rows: object) -> Tensor:
        return self.file.count(self.tensor[rows])  # type: ignore[index]


def test_loading_one_exhibit_reads_only_its_rows(path, factors, monkeypatch):
    files: list[Counted] = []

    @contextmanager
    def counting(path: Path) -> Iterator[Counted]:
        with uncounted(path) as file:
            files.append(Counted(file))
            yield files[-1]

    uncounted = museum_file.opened
    monkeypatch.setattr(museum_file, "opened", counting)
    exhibit = load_museum(path, words=["<word-700>"]).exhibits[0]
    for projection, (up, down) in factors.items():
        assert torch.equal(exhibit.deltas[projection].up[:, 0], up[:, 700])
        assert torch.equal(exhibit.deltas[projection].down[0], down[700])
    rows = sum(4 * sum(projection.shape) for projection in PROJECTIONS)
    alphas, vectors = 4 * len(PROJECTIONS), 4 * 768
    assert [file.read for file in files] == [rows + alphas + vectors]


def test_a_view_is_the_sum_of_the_chosen_exhibits(path, factors):
    """Against float64 products of the factors that the exhibits were cut from."""
    view = load_view(path, {f"<word-{number}>": 2.0 for number in range(3, COUNT)})
    assert [token.word for token in view.tokens] == [f"<word-{number}>" for number in range(3, COUNT)]
    for projection in PROJECTIONS[::11]:
        up, down = (factor.double() for factor in factors[projection])
        expected = 2 * up[:, 3:] @ down[3:]
        torch.testing.assert_close(view.deltas[projection].double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux counts it")
def test_viewing_and_appending_do_not_copy_the_file_into_memory(path, tmp_path):
    """In a process that may allocate the matrices and little else; a copy of the file would fail."""
    grown = shutil.copy(path, tmp_path)
    script = "import sys; from tests.museum.test_large_museums import in_little_memory; in_little_memory(*sys.argv[1:])"
    command = [sys.executable, "-c", script, str(path), str(grown)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert read_header(grown).words == (*(f"<word-{number}>" for number in range(COUNT)), "<new>")
    old, new = load_museum(path, words=["<word-9>"]).exhibits[0], load_museum(grown, words=["<word-9>", "<new>"])
    assert old.same_as(new.exhibits[0]) and all(
        torch.equal(delta.up, old.deltas[projection].up) and torch.equal(delta.down, old.deltas[projection].down)
        for projection, delta in new.exhibits[1].deltas.items()
    )


def in_little_memory(path: str, grown: str) -> None:
    """View the museum in `path` and append an exhibit to the one in `grown`, with too little memory for a copy."""
    import resource

    torch.set_num_threads(1)
    learned = load_museum(path, words=["<word-9>"]).exhibits[0]
    torch.zeros(8, 8).addmm_(torch.ones(8, 8), torch.ones(8, 8))

    def allow(more: int) -> None:
        status = Path("/proc/self/status").read_text()
        used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
        mapped = Path(path).stat().st_size  # the mapped file counts although nothing is copied
        resource.setrlimit(resource.RLIMIT_DATA, (used + mapped + more, resource.RLIM_INFINITY))

    allow(SLACK_BYTES)
    append_exhibits([replace(learned, token=replace(learned.token, word="<new>"))], grown, base=BASE)
    allow(SLACK_BYTES + DENSE_BYTES)
    assert len(load_view(path).tokens) == COUNT
    with safe_open(path, framework="pt"), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(Path(path).stat().st_size, dtype=torch.uint8)
