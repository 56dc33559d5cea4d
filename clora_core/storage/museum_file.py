"""A museum in one file, which is also an ordinary LoRA. `layout.py` says where its tensors stand."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..concept import ConceptToken
from ..errors import MuseumError
from ..low_rank import LowRank
from ..museum import Exhibit, Museum
from ..projections import Projection
from .facts import lora_facts
from .files import DTYPE_NAMES, content_hash, errors_about, opened, read_metadata, write
from .header import ExhibitHeader, Header, Stored, header_from_json, header_of, header_to_json
from .layout import check_finite, factor_keys, factors, rank_rows, shapes, total_ranks, vector_keys, vectors

FORMAT = "clora-museum"
VERSION = "1"
DTYPES: dict[Stored, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_museum(museum: Museum, path: Path | str, *, overwrite: bool = False, dtype: Stored = "float32") -> Path:
    """Write the museum and say where. The same museum under the same name gives the same bytes.

    overwrite: whether a file of that name may be replaced; it is then kept as `<name>.bak.safetensors`. dtype: how the
    tensors are stored; float16 and bfloat16 halve the file and round the numbers.
    """
    path = Path(path)
    with errors_about(path):
        header = header_of(museum, dtype)
        tensors = factors(museum, header.architecture, DTYPES[dtype])
        for exhibit in museum.exhibits:
            tensors |= vectors(exhibit, header.architecture, DTYPES[dtype])
        check_finite(tensors)
        metadata = lora_facts(museum, path.stem, content_hash(tensors))
        metadata |= {"clora.format": FORMAT, "clora.version": VERSION, "clora.museum": header_to_json(header)}
        write(path, tensors, metadata, existing="keep beside" if overwrite else "refuse")
    return path


def load_museum(path: Path | str, *, words: Sequence[str] | None = None) -> Museum:
    """The museum in the file, float32 on the CPU; with `words`, only these exhibits, and only their rows are read."""
    path = Path(path)
    with errors_about(path), opened(path) as file:
        header = _checked_header(file)
        if words is not None and (unknown := [word for word in words if word not in header.words]):
            known = ", ".join(header.words) or "nothing yet"
            raise MuseumError(f"There is no '{unknown[0]:.80}' in this museum. It holds: {known}.")
        _check_alphas(file, header)
        rows = rank_rows(header)
        wanted = set(header.words if words is None else words)
        exhibits = (_read(file, header, e, rows[e.word]) for e in header.exhibits if e.word in wanted)
        return Museum(header.base, tuple(exhibits))


def read_header(path: Path | str) -> Header:
    """What is in the file, without reading its tensors."""
    path = Path(path)
    with errors_about(path), opened(path) as file:
        return _checked_header(file)


def _checked_header(file: safe_open) -> Header:
    """The header, once the file's tensors are known to be exactly those that it speaks of."""
    metadata = read_metadata(file, FORMAT, VERSION)
    if "clora.museum" not in metadata:
        raise MuseumError("Its metadata has no 'clora.museum'.")
    header = header_from_json(metadata["clora.museum"])
    expected, found = shapes(header), set(file.keys())
    if missing := sorted(set(expected) - found):
        raise MuseumError(f"The tensor '{missing[0]}' is missing.")
    if unknown := sorted(found - set(expected)):
        raise MuseumError(f"There is a tensor '{unknown[0]:.100}' of which the header does not speak.")
    stored = DTYPE_NAMES[DTYPES[header.dtype]]
    for name, shape in expected.items():
        tensor = file.get_slice(name)
        if tuple(tensor.get_shape()) != shape:
            raise MuseumError(f"'{name}' has shape {tuple(tensor.get_shape())}; by the header it must be {shape}.")
        if tensor.get_dtype() != (dtype := "F32" if name.endswith(".alpha") and not shape else stored):
            raise MuseumError(f"'{name}' has dtype {tensor.get_dtype()}; by the header it must be {dtype}.")
    return header


def _check_alphas(file: safe_open, header: Header) -> None:
    """alpha is the rank, so that ordinary loaders scale by one, as this one does."""
    for projection, rank in total_ranks(header).items():
        _, _, name = factor_keys(projection, header.architecture)
        if (alpha := float(file.get_tensor(name))) != rank:
            raise MuseumError(f"'{name}' is {alpha}; it must be the rank, {rank}.")


def _read(file: safe_open, header: Header, exhibit: ExhibitHeader, rows: dict[Projection, slice]) -> Exhibit:
    tensors: dict[str, Tensor] = {}
    deltas: dict[Projection, LowRank] = {}
    for projection, own in rows.items():
        up, down, _ = factor_keys(projection, header.architecture)
        tensors |= {up: _owned(file.get_slice(up)[:, own]), down: _owned(file.get_slice(down)[own])}
        deltas[projection] = LowRank(tensors[up], tensors[down])
    word_vectors: dict[str, Tensor] = {}
    for encoder, key in vector_keys(exhibit.word, exhibit.layers, header.architecture).items():
        tensors[key] = _owned(file.get_slice(key)[:])
        word_vectors[encoder] = tensors[key] if exhibit.layers > 1 else tensors[key][None]
    check_finite(tensors)
    token = ConceptToken(exhibit.word, word_vectors)
    return Exhibit(token, deltas, exhibit.recipe, exhibit.kind, exhibit.prompt, exhibit.facts, exhibit.thumbnail)


def _owned(rows: Tensor) -> Tensor:
    """A copy in memory: the file may be replaced while the museum is in use."""
    return rows.to(torch.float32, copy=True).contiguous()
