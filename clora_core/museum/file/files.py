"""Write safetensors files, and read files from untrusted sources.

The format (https://huggingface.co/docs/safetensors): 8 bytes of header size, a JSON header, the tensors' bytes. The
library orders metadata differently from run to run. This module writes the format itself, so that the same museum
always gives the same bytes.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CLoRAError, MuseumError
from ...seeds import bytes_of
from .joined import Joined

HEADER_LIMIT = 64 * 1024 * 1024  # bytes
ENTRIES_LIMIT = 1_000_000  # commas in the header
OPENINGS = 100  # attempts to open a file that other programs keep replacing

# Kinds of museums, as errors call them.
KINDS = {
    "clora-museum": "a museum of concepts, for a text-to-image model",
    "clora-class-museum": "a museum of classes, for pictures (the command `classify`)",
}

Identity = tuple[int, ...]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Turn every error in the block into a MuseumError that names the file."""
    try:
        yield
    except CLoRAError as error:
        raise MuseumError(f"{path.name}: {error}") from error
    except OSError as error:
        message = f"{path.name}: {error.strerror or error} (in '{path.parent}'). Check the disk and your permissions."
        raise MuseumError(message) from error
    except SafetensorError as error:
        raise MuseumError(f"{path.name} is not a complete safetensors file ({error}).") from error
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise MuseumError(f"{path.name} cannot be used ({type(error).__name__}: {error}).") from error


def opened(path: Path) -> safe_open:
    """Open a safetensors file. Raises MuseumError where it is missing or its header is too large.

    The library opens the path twice, for the header and for the data. Both must be the same file.
    """
    if path.is_dir():
        raise MuseumError("It is a folder, not a file.")
    if not path.is_file():
        raise MuseumError(f"There is no such file in '{path.parent}'.")
    for _ in range(OPENINGS):
        before = identity(path)
        _check_size(path)
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, RuntimeError, OSError):
            if identity(path) == before:
                raise
        else:
            if identity(path) == before:
                return file
    raise MuseumError("Other programs keep replacing it. Load it when nothing writes to it.")


def read_metadata(file: safe_open, kind: str, version: str) -> Mapping[str, str]:
    """The file's metadata. Raises MuseumError for a file of another kind or version."""
    metadata = file.metadata() or {}
    actual_kind, actual = metadata.get("clora.format"), metadata.get("clora.version")
    if actual_kind != kind:
        if actual_kind in KINDS and kind in KINDS:
            raise MuseumError(f"It is {KINDS[actual_kind]}, not {KINDS[kind]}.")
        raise MuseumError(f"It is not a {kind} file: its 'clora.format' is {actual_kind!r:.60}.")
    if actual != version:
        raise MuseumError(f"It has version {actual!r:.60}; this program reads version {version}. Update the program.")
    return metadata


def dump(file: BinaryIO, tensors: Mapping[str, Tensor | Joined], metadata: Callable[[str], Mapping[str, str]]) -> None:
    """Write a safetensors file. metadata: computes the metadata from the `content_hash` of the tensors.

    Tensors are read once; the header, whose length does not depend on the hash, is written last.
    """
    digest = hashlib.sha256()
    file.seek(8 + len(_header(tensors, metadata(digest.hexdigest()))))
    for name in _order(tensors):
        tensor = tensors[name]
        for part in tensor.parts() if isinstance(tensor, Joined) else (tensor,):
            check_finite({name: part})
            digest.update(data := _bytes(part))
            file.write(data)
    header = _header(tensors, metadata(digest.hexdigest()))
    file.seek(0)
    file.write(len(header).to_bytes(8, "little") + header)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise MuseumError for the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            least, greatest = tensor.aminmax()  # both are NaN where one number is
            if not (math.isfinite(least.item()) and math.isfinite(greatest.item())):
                raise MuseumError(f"'{name}' holds values that are not finite numbers.")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bytes in file order, in hexadecimal. Metadata is not part of it."""
    digest = hashlib.sha256()
    for name in _order(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def identity(path: Path) -> Identity:
    """Changes whenever another file takes this name."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def header_digest(path: Path) -> str:
    """SHA-256 of the header, in hexadecimal. It differs between museums, since the header holds the content hash."""
    return hashlib.sha256(_read_header(path)).hexdigest()


def version(path: Path) -> str:
    """Changes whenever the content changes. Fast: uses the hash in the header, or else the modification time."""
    header = _read_header(path)
    time = "" if b'"sshs_model_hash":' in header else str(path.stat().st_mtime_ns)
    return hashlib.sha256(header + time.encode()).hexdigest()


def refused_by_the_system(error: MuseumError) -> bool:
    """Whether reading failed for lack of memory, file handles or permissions; the file itself may be intact."""
    return isinstance(error.__cause__, (OSError, MemoryError, RuntimeError))  # torch raises RuntimeError


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
        return start + file.read(min(int.from_bytes(start, "little"), HEADER_LIMIT))


def other_kind(path: Path) -> str:
    """What a file is if it is clearly no safetensors file, in a sentence; "" if it may be one."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "It is a pointer of git-lfs, not the file itself. Run git lfs pull, or download the file again."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "It is a web page, not the file itself. Download the file again, perhaps after logging in."
    if start.startswith((b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "It is a pickle or a zip archive with another suffix. Get it as .safetensors."
    return "It is empty. Download it again." if not start else ""


def _check_size(path: Path) -> None:
    """Raise MuseumError for a header that would take too much time or memory to parse."""
    if other := other_kind(path):
        raise MuseumError(other)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            message = f"Its header claims {size} bytes; the limit is {HEADER_LIMIT}. Is it a safetensors file?"
            raise MuseumError(message)
        if (entries := file.read(size).count(b",")) > ENTRIES_LIMIT:
            raise MuseumError(f"Its header has about {entries} entries; the limit is {ENTRIES_LIMIT}.")


def _header(tensors: Mapping[str, Tensor | Joined], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    if "__metadata__" in tensors:
        raise MuseumError("A tensor cannot be called '__metadata__'.")
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise MuseumError(f"'{name}' has dtype {tensor.dtype}, which the format does not support.")
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    if len(header) > HEADER_LIMIT - 8:
        raise MuseumError(
            f"The header would take {len(header)} bytes; the limit is {HEADER_LIMIT}. Make the thumbnails smaller."
        )
    if (count := header.count(b",")) > ENTRIES_LIMIT:
        raise MuseumError(
            f"The header would have about {count} entries; the limit is {ENTRIES_LIMIT}. Split the museum."
        )
    return header + b" " * (-len(header) % 8)


def _order(tensors: Mapping[str, Tensor | Joined]) -> list[str]:
    """Wide dtypes first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _bytes(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise MuseumError("Files can only be written on little-endian machines.")
    return bytes_of(tensor)
