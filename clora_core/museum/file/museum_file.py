"""Read a museum from its file. `layout.py` describes the tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import MuseumError
from ...model.base import Fingerprint
from ...model.concept import ConceptToken
from ...model.low_rank import LowRank
from ...model.projections import Projection
from ...texts import normal
from ..museum import CLIP_SKIP, PHRASE, Exhibit, Museum
from .damage import undamaged
from .files import DTYPE_NAMES, check_finite, errors_about, opened, read_metadata
from .header import ExhibitHeader, Header, Stored, header_from_json
from .layout import factor_keys, own_keys, rank_rows, rank_scales, shapes, vector_keys

FORMAT = "clora-museum"
VERSION = "1"
DTYPES: dict[Stored, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RANKS_AT_ONCE = 1024  # rank rows that `load_view` reads at a time


@dataclass(frozen=True, eq=False)
class View:
    """A museum, ready to sample with. deltas: the sum of all exhibits that act everywhere, one (out, in) float32 matrix
    per projection. gated: the exhibits that act at their words only."""

    base: Fingerprint
    tokens: tuple[ConceptToken, ...]
    deltas: Mapping[Projection, Tensor]
    gated: tuple[Exhibit, ...]


def load_museum(path: Path | str, *, words: Sequence[str] | None = None) -> Museum:
    """The museum in the file, float32 on the CPU. With `words`, only the rows of these exhibits are read.

    Raises MuseumError for an invalid file or an unknown word. Loading all exhibits also checks the file's hash.
    """
    with _reading(Path(path), words) as (file, header, exhibits):
        return Museum(header.base, _exhibits(file, header, exhibits))


@torch.no_grad()
def load_view(path: Path | str, strengths: Mapping[str, float] | None = None) -> View:
    """The same result as `load_museum` and `Museum.dense`, with only the dense matrices in memory.

    strengths: word → factor on the exhibit's own strength, for the exhibits to view; None views all. Gated exhibits
    are not scaled. Viewing all exhibits also checks the file's hash.
    """
    own = None if strengths is None else {normal(word): strength for word, strength in strengths.items()}
    with _reading(Path(path), None if own is None else list(own)) as (file, header, exhibits):
        scales = rank_scales(header, dict.fromkeys(header.words, 1.0) if own is None else own)
        return View(
            header.base,
            tuple(_token(file, header, exhibit) for exhibit in exhibits),
            {projection: _dense(file, header, projection, scale) for projection, scale in scales.items()},
            _exhibits(file, header, [exhibit for exhibit in exhibits if not exhibit.everywhere]),
        )


def read_header(path: Path | str) -> Header:
    """The header of the file. Checks the names and shapes of the tensors, but does not read them."""
    path = Path(path)
    with errors_about(path), opened(path) as file:
        return checked_header(file)


def checked_header(file: safe_open) -> Header:
    """The header of an open file. Raises MuseumError unless the file has exactly the tensors that it describes."""
    metadata = read_metadata(file, FORMAT, VERSION)
    if "clora.museum" not in metadata:
        raise MuseumError("Its metadata has no 'clora.museum'.")
    header = header_from_json(metadata["clora.museum"])
    stored = DTYPE_NAMES[DTYPES[header.dtype]]
    names = set(file.keys())
    for name, shape in shapes(header):  # stops at the first error: a forged header may list millions of tensors
        if name not in names:
            raise MuseumError(f"The tensor '{name}' is missing.")
        names.remove(name)
        tensor = file.get_slice(name)
        if tuple(tensor.get_shape()) != shape:
            raise MuseumError(f"'{name}' has shape {tuple(tensor.get_shape())}; the header requires {shape}.")
        if tensor.get_dtype() != (dtype := "F32" if name.endswith(".alpha") and not shape else stored):
            raise MuseumError(f"'{name}' has dtype {tensor.get_dtype()}; the header requires {dtype}.")
    if names:
        raise MuseumError(f"The tensor '{min(names):.100}' is not listed in the header.")
    return header


def check_sum(file: safe_open, header: Header, exhibits: Sequence[ExhibitHeader]) -> None:
    """Raise MuseumError where other programs would not show these exhibits as they were learned, at their strength.

    Those programs scale by alpha / rank, so alpha must be the rank. They read `up` times the strength from the sum.
    """
    for projection, rank in header.total_ranks():
        _, _, name = factor_keys(projection, header.family)
        if (alpha := float(file.get_tensor(name))) != rank:
            raise MuseumError(f"'{name}' is {alpha}; it must be the rank, {rank}.")
    scaled = {exhibit.word: exhibit for exhibit in exhibits if exhibit.strength != 1}
    for word, slices in rank_rows(header, scaled).items():
        for projection, rows in slices.items():
            up, _, _ = factor_keys(projection, header.family)
            own, _ = own_keys(scaled[word].name, projection, header.family)
            strength = scaled[word].strength
            if not _is_scaled(file.get_slice(up)[:, rows], _read(file, own), strength, header.dtype):
                raise MuseumError(
                    f"'{up}' is not '{own}' times {strength:g}, the strength of '{word}'. Another program changed one "
                    "of the two. Use an earlier copy of the file."
                )


@contextmanager
def _reading(path: Path, words: Sequence[str] | None) -> Iterator[tuple[safe_open, Header, list[ExhibitHeader]]]:
    """The open file, its checked header, and the entries of these words (None: all) in the museum's order."""
    with errors_about(path), opened(path) as file:
        header = checked_header(file)
        chosen = set(header.words if words is None else map(normal, words))
        if unknown := sorted(chosen - set(header.words)):
            known = ", ".join(header.words[:20]) or "nothing yet"
            more = f" and {len(header.words) - 20} more" if len(header.words) > 20 else ""
            raise MuseumError(f"There is no '{unknown[0]:.80}' in this museum. It holds: {known}{more}.")
        exhibits = [exhibit for exhibit in header.exhibits if exhibit.word in chosen]
        with undamaged(path, file) if len(exhibits) == len(header.exhibits) else nullcontext():
            check_sum(file, header, exhibits)
            yield file, header, exhibits


def _exhibits(file: safe_open, header: Header, entries: Sequence[ExhibitHeader]) -> tuple[Exhibit, ...]:
    deltas = _deltas(file, header, entries)
    return tuple(
        Exhibit(_token(file, header, e), deltas[e.word], e.recipe, e.kind, e.prompt, e.facts, e.thumbnail, e.strength)
        for e in entries
    )


def _deltas(file: safe_open, header: Header, exhibits: Sequence[ExhibitHeader]) -> dict[str, dict[Projection, LowRank]]:
    """word → its deltas as they were learned. Adjoining rows of a sum are read at once, as views of one tensor."""
    deltas: dict[str, dict[Projection, LowRank]] = {exhibit.word: {} for exhibit in exhibits}
    rows = rank_rows(header, deltas)
    for projection in header.projections:
        up, down, _ = factor_keys(projection, header.family)
        for run in _adjoining([(word, own[projection]) for word, own in rows.items() if projection in own]):
            block = slice(run[0][1].start, run[-1][1].stop)
            ranks = [own.stop - own.start for _, own in run]
            ups, downs = (
                _read(file, up, (slice(None), block)).split(ranks, dim=1),
                _read(file, down, block).split(ranks),
            )
            for (word, _), own_up, own_down in zip(run, ups, downs, strict=True):
                deltas[word][projection] = LowRank(own_up, own_down)
    for exhibit in exhibits:
        if exhibit.everywhere and exhibit.strength == 1:
            continue
        for projection in exhibit.ranks:
            up, down = own_keys(exhibit.name, projection, header.family)
            own_down = deltas[exhibit.word][projection].down if exhibit.everywhere else _read(file, down)
            deltas[exhibit.word][projection] = LowRank(_read(file, up), own_down)
    return deltas


def _is_scaled(scaled: Tensor, learned: Tensor, strength: float, dtype: Stored) -> bool:
    """Whether scaled = strength · learned, up to the rounding of both to the stored dtype."""
    numbers = torch.finfo(DTYPES[dtype])
    smallest = numbers.smallest_normal * numbers.eps
    return torch.allclose(scaled.float(), strength * learned, rtol=2 * numbers.eps, atol=smallest * (1 + abs(strength)))


def _adjoining(rows: Sequence[tuple[str, slice]]) -> list[list[tuple[str, slice]]]:
    """The words in runs whose rows follow each other without a gap."""
    runs: list[list[tuple[str, slice]]] = []
    for word, own in rows:
        if runs and runs[-1][-1][1].stop == own.start:
            runs[-1].append((word, own))
        else:
            runs.append([(word, own)])
    return runs


def _token(file: safe_open, header: Header, exhibit: ExhibitHeader) -> ConceptToken:
    keys = vector_keys(exhibit.name, exhibit.ordinary, header.family)
    vectors = {encoder: _read(file, key) for encoder, key in keys.items()}
    skip, phrase = exhibit.facts.get(CLIP_SKIP), exhibit.facts.get(PHRASE)
    return ConceptToken(
        exhibit.word,
        {name: v[None] for name, v in vectors.items()} if exhibit.ordinary else vectors,
        skip if type(skip) is int else None,
        phrase if isinstance(phrase, str) else "",
    )


def _dense(file: safe_open, header: Header, projection: Projection, scale: Tensor) -> Tensor:
    """Σ over the rank rows of scale · up · down, some rows at a time, without those at the ends whose scale is 0."""
    up, down, _ = factor_keys(projection, header.family)
    total = torch.zeros(projection.shape)
    for start in range(0, len(scale), RANKS_AT_ONCE):
        used = scale[start : start + RANKS_AT_ONCE].nonzero().flatten().tolist()
        if used:
            rows = slice(start + used[0], start + used[-1] + 1)
            total.addmm_(_read(file, up, (slice(None), rows)) * scale[rows], _read(file, down, rows))
    return total


def _read(file: safe_open, name: str, rows: slice | tuple[slice, slice] = slice(None)) -> Tensor:
    """A float32 copy in memory: the file may be replaced while the museum is in use."""
    copy = file.get_slice(name)[rows].to(torch.float32, copy=True).contiguous()
    check_finite({name: copy})
    return copy
