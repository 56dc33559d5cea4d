"""Write a museum to a file, or append exhibits to one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ...errors import MuseumError
from ...model.base import Fingerprint
from ...model.projections import Projection
from ..museum import Exhibit, Museum
from .damage import sealed, undamaged
from .facts import lora_facts
from .files import Identity, dump, errors_about, identity, opened
from .header import Header, Stored, header_of, header_to_json
from .joined import Joined, Rows
from .layout import factor_keys, joined_factors, own_factors, shapes, stored, vectors
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
    """Write the museum and return the path. The same museum under the same name gives the same bytes.

    overwrite: replace an existing file, and keep it as a backup (see `backups.py`). dtype: of the stored tensors;
    float16 and bfloat16 halve the file and round the numbers. read: the `identity` of the file that the museum came
    from; raises MuseumError if another program has written it since. waiting: see `replacing`.
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
    """Add exhibits, learned on that base, to the museum in the file, or to a new one if there is no file.

    The old file is kept as a backup. The new one has the same bytes as `save_museum` would write for the whole museum
    in the old file's dtype, but only some megabytes are in memory at a time. Exhibits that another program adds at the
    same time are kept. Raises MuseumError for a word that the museum already holds, another base, or a damaged file.
    """
    path, addition = Path(path), Museum(base, tuple(exhibits))
    while True:
        with errors_about(path):
            before = identity(path) if path.exists() else None
        try:
            if before is None:
                return save_museum(addition, path)
            with errors_about(path), replacing(path, "keep beside", read=before) as new:
                _dump_with(addition, path, new)
            return path
        except MuseumError as error:
            created = before is None and path.exists()
            if not created and not isinstance(error.__cause__, ChangedMeanwhileError):
                raise


def _pieces(museum: Museum, dtype: Stored) -> dict[Projection, list[tuple[Rows, Rows]]]:
    """projection → the factors of every exhibit that acts everywhere, `up` times the exhibit's strength."""
    pieces: dict[Projection, list[tuple[Rows, Rows]]] = {}
    for exhibit in museum.exhibits:
        for projection, delta in () if exhibit.gate else exhibit.scaled().items():
            up, down = (stored(factor, DTYPES[dtype], projection.path) for factor in (delta.up, delta.down))
            pieces.setdefault(projection, []).append((up, down))
    return pieces


def _of_one(exhibit: Exhibit, header: Header) -> dict[str, Tensor]:
    """The tensors that belong to this exhibit alone."""
    dtype = DTYPES[header.dtype]
    return vectors(exhibit, header.family, dtype) | own_factors(exhibit, header.family, dtype)


def _dump(file: BinaryIO, path: Path, header: Header, tensors: Mapping[str, Tensor | Joined]) -> None:
    ours = {"clora.format": FORMAT, "clora.version": VERSION, "clora.museum": header_to_json(header)}
    dump(file, tensors, lambda content: lora_facts(header, path.stem, content) | sealed(ours, tensors, content))


def _dump_with(addition: Museum, path: Path, new: BinaryIO) -> None:
    """Write the file's museum and the addition. On return, no reference keeps the old file open."""
    with opened(path) as file:
        old = checked_header(file)
        with undamaged(path, file):
            check_sum(file, old, old.exhibits)
        addition.check_over(old.base)
        header = old.followed_by(header_of(addition, old.dtype))
        dtype = DTYPES[old.dtype]
        pieces: dict[Projection, list[tuple[Rows, Rows]]] = {}
        for projection, _ in old.total_ranks():
            up, down, _ = factor_keys(projection, old.family)
            pieces[projection] = [(file.get_slice(up), file.get_slice(down))]
        for projection, added in _pieces(addition, old.dtype).items():
            pieces.setdefault(projection, []).extend(added)
        tensors = {name: Joined([file.get_slice(name)], "below", shape, dtype) for name, shape in shapes(old)}
        tensors |= joined_factors(pieces, header, dtype)
        for exhibit in addition.exhibits:
            tensors |= _of_one(exhibit, header)
        _dump(new, path, header, tensors)
