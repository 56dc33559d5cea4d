"""Write a museum to its file: anew, or with more exhibits than it holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ...model.base import Fingerprint
from ...model.projections import Projection
from ..museum import Exhibit, Museum
from .damage import sealed, undamaged
from .facts import lora_facts
from .files import Identity, dump, errors_about, identity, opened
from .header import Header, Stored, header_of, header_to_json
from .joined import Joined, Rows
from .layout import factor_keys, joined_factors, own_factors, shapes, stored, total_ranks, vectors
from .museum_file import DTYPES, FORMAT, VERSION, check_sum, checked_header
from .replacing import ChangedMeanwhileError, Waiting, replacing


def save_museum(
    museum: Museum,
    path: Path | str,
    *,
    overwrite: bool = False,
    dtype: Stored = "float32",
    read: Identity | None = None,
    waiting: Waiting | None = None,
) -> Path:
    """Write the museum and say where. The same museum under the same name gives the same bytes.

    overwrite: whether a file of that name may be replaced; it is then kept beside the new one, as `backups.py` says.
    dtype: how the tensors are stored; float16 and bfloat16 halve the file and round the numbers. read: the `identity`
    of the file that the museum was made of; one that another program has written since is not replaced. waiting: as in
    `replacing`.
    """
    path = Path(path)
    existing = "keep beside" if overwrite else "refuse"
    with errors_about(path), replacing(path, existing, read=read, waiting=waiting) as new:
        header = header_of(museum, dtype)
        tensors = joined_factors(_pieces(museum, dtype), header, DTYPES[dtype])
        for exhibit in museum.exhibits:
            tensors |= _of_one(exhibit, header)
        _dump(new, path, header, tensors)
    return path


def append_exhibits(exhibits: Sequence[Exhibit], path: Path | str, *, base: Fingerprint) -> Path:
    """Add exhibits, learned over that base, to the museum in the file; the old file is kept beside it.

    The new file has the bytes that `save_museum` writes for the whole museum, in the dtype of the old one, but only
    some megabytes are in memory at a time. A word that the museum holds already, and another base, are refused. What
    another program adds meanwhile is kept. A damaged file is refused.
    """
    path = Path(path)
    with errors_about(path):
        while True:
            known = identity(path) if path.exists() else None
            try:
                with replacing(path, "keep beside", read=known) as new:
                    _dump_with(Museum(base, tuple(exhibits)), path, new)
                return path
            except ChangedMeanwhileError:
                continue  # with the file as it is now


def _pieces(museum: Museum, dtype: Stored) -> dict[Projection, list[tuple[Rows, Rows]]]:
    """projection → the factors of every exhibit that moves it everywhere, `up` times the exhibit's strength."""
    pieces: dict[Projection, list[tuple[Rows, Rows]]] = {}
    for exhibit in museum.exhibits:
        if exhibit.gate:
            continue
        for projection, delta in exhibit.deltas.items():
            shown = delta.scaled(exhibit.strength)
            up, down = (stored(factor, DTYPES[dtype], projection.path) for factor in (shown.up, shown.down))
            pieces.setdefault(projection, []).append((up, down))
    return pieces


def _of_one(exhibit: Exhibit, header: Header) -> dict[str, Tensor]:
    """What stands in the file for this exhibit alone."""
    dtype = DTYPES[header.dtype]
    return vectors(exhibit, header.family, dtype) | own_factors(exhibit, header.family, dtype)


def _dump(file: BinaryIO, path: Path, header: Header, tensors: Mapping[str, Tensor | Joined]) -> None:
    ours = {"clora.format": FORMAT, "clora.version": VERSION, "clora.museum": header_to_json(header)}
    dump(file, tensors, lambda content: lora_facts(header, path.stem, content) | sealed(ours, tensors, content))


def _dump_with(addition: Museum, path: Path, new: BinaryIO) -> None:
    """The museum of the file and the addition. A function of its own: nothing may hold the file when it is replaced."""
    with opened(path) as file:
        old = checked_header(file)
        with undamaged(path, file):
            check_sum(file, old, old.exhibits)
        addition.check_over(old.base)
        header = old.followed_by(header_of(addition, old.dtype))
        dtype = DTYPES[old.dtype]
        pieces: dict[Projection, list[tuple[Rows, Rows]]] = {}
        for projection in total_ranks(old):
            up, down, _ = factor_keys(projection, old.family)
            pieces[projection] = [(file.get_slice(up), file.get_slice(down))]
        for projection, own in _pieces(addition, old.dtype).items():
            pieces.setdefault(projection, []).extend(own)
        kept = {name: Joined([file.get_slice(name)], "below", shape, dtype) for name, shape in shapes(old)}
        added = {name: tensor for exhibit in addition.exhibits for name, tensor in _of_one(exhibit, header).items()}
        _dump(new, path, header, kept | joined_factors(pieces, header, dtype) | added)
