"""A museum in one file, which is also an ordinary LoRA: reading it. `layout.py` says where its tensors stand."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from ..museum import Exhibit, Museum
from .damage import undamaged
from .files import DTYPE_NAMES, check_finite, errors_about, opened, read_metadata
from .header import ExhibitHeader, Header, Stored, header_from_json
from .layout import factor_keys, own_keys, rank_rows, rank_scales, shapes, total_ranks, vector_keys

FORMAT = "clora-museum"
VERSION = "1"
DTYPES: dict[Stored, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RANKS_AT_ONCE = 1024  # read at a time


@dataclass(frozen=True, eq=False)
class View:
    """A museum as it is shown: its words, the sum of what acts everywhere as one matrix (out, in) float32 per
    projection, however many it holds, and the exhibits that act at their words only."""

    base: Fingerprint
    tokens: tuple[ConceptToken, ...]
    deltas: Mapping[Projection, Tensor]
    gated: tuple[Exhibit, ...]


def load_museum(path: Path | str, *, words: Sequence[str] | None = None) -> Museum:
    """The museum in the file, float32 on the CPU; with `words`, only these exhibits, and only their rows are read.

    Where that is all of them, the file is compared with its hash.
    """
    path = Path(path)
    with errors_about(path), opened(path) as file:
        header = checked_header(file)
        chosen = _chosen(header, words)
        with _checked(path, file, header, chosen):
            check_alphas(file, header)
            deltas = _deltas(file, header, chosen)
            return Museum(header.base, tuple(_exhibit(file, header, told, deltas[told.word]) for told in chosen))


@torch.no_grad()
def load_view(path: Path | str, strengths: Mapping[str, float] | None = None) -> View:
    """What `load_museum` and `Museum.dense` give together, in the memory of the matrices alone.

    strengths: which exhibits are shown, each at its own strength times this number; None shows all. The gated ones
    come as they were learned. Where all are shown, the file is compared with its hash.
    """
    path = Path(path)
    with errors_about(path), opened(path) as file:
        header = checked_header(file)
        chosen = _chosen(header, None if strengths is None else list(strengths))
        with _checked(path, file, header, chosen):
            check_alphas(file, header)
            check_strengths(file, header, chosen)
            scales = rank_scales(header, dict.fromkeys(header.words, 1.0) if strengths is None else strengths)
            tokens = tuple(_token(file, header, exhibit) for exhibit in chosen)
            deltas = {projection: _summed(file, header, projection, scale) for projection, scale in scales.items()}
            apart = [told for told in chosen if not told.everywhere]
            factors = _deltas(file, header, apart)
            gated = tuple(_exhibit(file, header, told, factors[told.word]) for told in apart)
            return View(header.base, tokens, deltas, gated)


def read_header(path: Path | str) -> Header:
    """What is in the file, without reading its tensors."""
    path = Path(path)
    with errors_about(path), opened(path) as file:
        return checked_header(file)


def checked_header(file: safe_open) -> Header:
    """The header, once the file's tensors are known to be exactly those that it speaks of."""
    metadata = read_metadata(file, FORMAT, VERSION)
    if "clora.museum" not in metadata:
        raise MuseumError("Its metadata has no 'clora.museum'.")
    header = header_from_json(metadata["clora.museum"])
    stored = DTYPE_NAMES[DTYPES[header.dtype]]
    found = set(file.keys())
    for name, shape in shapes(header):  # one by one, since a lying header may speak of millions
        if name not in found:
            raise MuseumError(f"The tensor '{name}' is missing.")
        found.remove(name)
        tensor = file.get_slice(name)
        if tuple(tensor.get_shape()) != shape:
            raise MuseumError(f"'{name}' has shape {tuple(tensor.get_shape())}; by the header it must be {shape}.")
        if tensor.get_dtype() != (dtype := "F32" if name.endswith(".alpha") and not shape else stored):
            raise MuseumError(f"'{name}' has dtype {tensor.get_dtype()}; by the header it must be {dtype}.")
    if found:
        raise MuseumError(f"There is a tensor '{min(found):.100}' of which the header does not speak.")
    return header


def check_alphas(file: safe_open, header: Header) -> None:
    """alpha is the rank, so that ordinary loaders scale by one, as this one does."""
    for projection, rank in total_ranks(header).items():
        _, _, name = factor_keys(projection, header.family)
        if (alpha := float(file.get_tensor(name))) != rank:
            raise MuseumError(f"'{name}' is {alpha}; it must be the rank, {rank}.")


def check_strengths(file: safe_open, header: Header, exhibits: Sequence[ExhibitHeader]) -> None:
    """What ordinary loaders show of these exhibits is what was learned times their strength."""
    for _ in _learned(file, header, [exhibit for exhibit in exhibits if exhibit.strength != 1], RANKS_AT_ONCE):
        pass  # reading checks


def _checked(
    path: Path, file: safe_open, header: Header, chosen: Sequence[ExhibitHeader]
) -> AbstractContextManager[None]:
    """What reads these exhibits is in here, so that the file is checked where it is read as a whole."""
    return undamaged(path, file) if len(chosen) == len(header.exhibits) else nullcontext()


def _chosen(header: Header, words: Iterable[str] | None) -> list[ExhibitHeader]:
    """The exhibits of these words, or all, in the museum's order."""
    wanted = set(header.words if words is None else words)
    if unknown := sorted(wanted - set(header.words)):
        known = ", ".join(header.words[:20]) or "nothing yet"
        more = f" and {len(header.words) - 20} more" if len(header.words) > 20 else ""
        raise MuseumError(f"There is no '{unknown[0]:.80}' in this museum. It holds: {known}{more}.")
    return [exhibit for exhibit in header.exhibits if exhibit.word in wanted]


def _exhibit(file: safe_open, header: Header, told: ExhibitHeader, deltas: Mapping[Projection, LowRank]) -> Exhibit:
    token = _token(file, header, told)
    return Exhibit(token, deltas, told.recipe, told.kind, told.prompt, told.facts, told.thumbnail, told.strength)


def _deltas(file: safe_open, header: Header, chosen: Sequence[ExhibitHeader]) -> dict[str, dict[Projection, LowRank]]:
    """word → its deltas. Only their rows are read."""
    deltas: dict[str, dict[Projection, LowRank]] = {exhibit.word: {} for exhibit in chosen}
    for exhibit in chosen:
        for projection in () if exhibit.everywhere else exhibit.ranks:
            up, down = own_keys(exhibit.word, projection, header.family)
            deltas[exhibit.word][projection] = _factors(file, up, slice(None), down, slice(None))
    for exhibit, projection, delta in _learned(file, header, chosen):
        deltas[exhibit.word][projection] = delta
    return deltas


def _learned(
    file: safe_open, header: Header, chosen: Sequence[ExhibitHeader], at_once: int | None = None
) -> Iterator[tuple[ExhibitHeader, Projection, LowRank]]:
    """What acts everywhere, as it was learned; at a strength other than 1, checked against what the sum holds of it.

    at_once: how many ranks are in memory at a time; by default all of a projection, as neighbouring views.
    """
    rows = rank_rows(header, {exhibit.word for exhibit in chosen})
    for projection in header.projections:
        up, down, _ = factor_keys(projection, header.family)
        own_rows = [(e, rows[e.word][projection]) for e in chosen if projection in rows.get(e.word, ())]
        for run in _adjoining(own_rows, at_once or sys.maxsize):
            whole = slice(run[0][1].start, run[-1][1].stop)
            factors = _factors(file, up, whole, down, whole)
            ranks = [own.stop - own.start for _, own in run]
            parts = zip(factors.up.split(ranks, dim=1), factors.down.split(ranks), strict=True)
            for (exhibit, _), (own_up, own_down) in zip(run, parts, strict=True):
                if exhibit.strength != 1:
                    shown, (key, _) = own_up, own_keys(exhibit.word, projection, header.family)
                    own_up = _owned(key, file.get_slice(key)[:])
                    if not _is_scaled(shown, own_up, exhibit.strength, header.dtype):
                        raise MuseumError(
                            f"'{up}' does not show '{exhibit.word}' as it was learned ('{key}') times its strength "
                            f"{exhibit.strength:g}. Something changed one of the two; take the file from before that."
                        )
                yield exhibit, projection, LowRank(own_up, own_down)


def _is_scaled(shown: Tensor, learned: Tensor, strength: float, dtype: Stored) -> bool:
    """Whether one is the other times a number, but for what both were rounded by when they were stored."""
    numbers = torch.finfo(DTYPES[dtype])
    smallest = numbers.smallest_normal * numbers.eps
    return torch.allclose(shown, strength * learned, rtol=2 * numbers.eps, atol=smallest * (1 + abs(strength)))


def _adjoining(rows: Sequence[tuple[ExhibitHeader, slice]], most: int) -> list[list[tuple[ExhibitHeader, slice]]]:
    """The exhibits in runs whose rows follow each other without a gap, no more than that many where it can be."""
    runs: list[list[tuple[ExhibitHeader, slice]]] = []
    for exhibit, own in rows:
        if runs and runs[-1][-1][1].stop == own.start and own.stop - runs[-1][0][1].start <= most:
            runs[-1].append((exhibit, own))
        else:
            runs.append([(exhibit, own)])
    return runs


def _token(file: safe_open, header: Header, exhibit: ExhibitHeader) -> ConceptToken:
    keys = vector_keys(exhibit.word, exhibit.ordinary, header.family)
    vectors = {encoder: _owned(key, file.get_slice(key)[:]) for encoder, key in keys.items()}
    return ConceptToken(exhibit.word, {name: v[None] for name, v in vectors.items()} if exhibit.ordinary else vectors)


def _summed(file: safe_open, header: Header, projection: Projection, scale: Tensor) -> Tensor:
    """Σ over the rank rows of scale · up · down, some rows at a time."""
    up, down, _ = factor_keys(projection, header.family)
    total = torch.zeros(projection.shape)
    for start in range(0, len(scale), RANKS_AT_ONCE):
        rows = slice(start, min(start + RANKS_AT_ONCE, len(scale)))
        if scale[rows].any():
            part = _factors(file, up, rows, down, rows)
            total.addmm_(part.up * scale[rows], part.down)
    return total


def _factors(file: safe_open, up: str, columns: slice, down: str, rows: slice) -> LowRank:
    return LowRank(_owned(up, file.get_slice(up)[:, columns]), _owned(down, file.get_slice(down)[rows]))


def _owned(name: str, rows: Tensor) -> Tensor:
    """A copy in memory: the file may be replaced while the museum is in use."""
    copy = rows.to(torch.float32, copy=True).contiguous()
    check_finite({name: copy})
    return copy
