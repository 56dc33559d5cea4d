"""The bytes of safetensors files, and reading them with suspicion.

The format (https://huggingface.co/docs/safetensors): 8 bytes of header size, a JSON header, the tensors' bytes. It is
written here, not by the library, because the library's order of the metadata differs from run to run, and the same
museum shall give the same bytes.
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
from .joined import Joined, parts

HEADER_LIMIT = 64 * 1024 * 1024  # bytes
ENTRIES_LIMIT = 1_000_000  # commas in the header
OPENINGS = 100  # tries to open a file that is replaced at just that moment

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
    """Every error in here becomes a MuseumError that names the file."""
    try:
        yield
    except CLoRAError as error:
        raise MuseumError(f"{path.name}: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        where = f"{path.name}: {reason} (in '{path.parent}')"
        raise MuseumError(f"{where}. Check the disk and your permissions.") from error
    except SafetensorError as error:
        raise MuseumError(f"{path.name} is no whole safetensors file ({error}).") from error
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise MuseumError(f"{path.name} cannot be used ({type(error).__name__}: {error}).") from error


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """The file as it is now, whatever takes its name meanwhile, once its header is known to be of a sane size."""
    if not path.is_file():
        raise MuseumError(f"There is no such file in '{path.parent}'.")
    with _opened_whole(path) as file:
        yield file


def _opened_whole(path: Path) -> safe_open:
    """safetensors opens a file twice, for the header and for the data; both must be of the same one."""
    for _ in range(OPENINGS):
        known = identity(path)
        _check_size(path)
        try:
            whole = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, RuntimeError, OSError):
            if identity(path) == known:
                raise
        else:
            if identity(path) == known:
                return whole
    raise MuseumError("It is being replaced again and again. Load it when nothing writes it.")


def read_metadata(file: safe_open, kind: str, version: str) -> Mapping[str, str]:
    """The metadata of a file that says it is of that kind and version."""
    metadata = file.metadata() or {}
    if metadata.get("clora.format") != kind:
        raise MuseumError(f"It is no {kind} file: its 'clora.format' is {metadata.get('clora.format')!r:.60}.")
    if metadata.get("clora.version") != version:
        found = metadata.get("clora.version")
        raise MuseumError(f"It has version {found!r:.60}; this program reads version {version}. Update the program.")
    return metadata


def dump(file: BinaryIO, tensors: Mapping[str, Tensor | Joined], metadata: Callable[[str], Mapping[str, str]]) -> None:
    """The bytes of a safetensors file. metadata: what it holds, given the `content_hash` of the tensors.

    The tensors are gone through once, and the header is written last; its length does not depend on the hash.
    """
    digest = hashlib.sha256()
    file.seek(8 + len(_header(tensors, metadata(digest.hexdigest()))))
    for name in _order(tensors):
        for part in parts(tensors[name]):
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
    """SHA-256 of the tensors as they stand in the file, in hexadecimal; the metadata does not enter."""
    digest = hashlib.sha256()
    for name in _order(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def identity(path: Path) -> Identity:
    """Another one for another file of that name."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def header_digest(path: Path) -> str:
    """SHA-256 of the header, in hexadecimal: another one for another museum, since the header holds its hash."""
    return hashlib.sha256(_header_of(path)).hexdigest()


def version(path: Path) -> str:
    """Another text for a file of other content, read in no time; by its time where its header holds no hash."""
    header = _header_of(path)
    time = "" if b'"sshs_model_hash":' in header else str(path.stat().st_mtime_ns)
    return hashlib.sha256(header + time.encode()).hexdigest()


def refused_by_the_system(error: MuseumError) -> bool:
    """Whether the file could not be read for want of memory, open files, rights and such: it may be whole."""
    return isinstance(error.__cause__, (OSError, MemoryError, RuntimeError))  # torch's is the last one


def _header_of(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
        return start + file.read(min(int.from_bytes(start, "little"), HEADER_LIMIT))


def _check_size(path: Path) -> None:
    """Refuse a header whose parsing alone would take much time or memory."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            found = f"Its header claims {size} bytes; at most {HEADER_LIMIT} are read."
            raise MuseumError(f"{found} Is it a safetensors file?")
        if (entries := file.read(size).count(b",")) > ENTRIES_LIMIT:
            raise MuseumError(f"Its header has about {entries} entries; at most {ENTRIES_LIMIT} are read.")


def _header(tensors: Mapping[str, Tensor | Joined], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    if "__metadata__" in tensors:
        raise MuseumError("No tensor can be called '__metadata__'.")
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise MuseumError(f"'{name}' has dtype {tensor.dtype}, which the file cannot hold.")
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    if len(header) > HEADER_LIMIT - 8:
        raise MuseumError(
            f"The header would take {len(header)} bytes; at most {HEADER_LIMIT} are read. Make the thumbnails smaller."
        )
    if (count := header.count(b",")) > ENTRIES_LIMIT:
        raise MuseumError(f"The header would have about {count} entries; at most {ENTRIES_LIMIT} are read. Save parts.")
    return header + b" " * (-len(header) % 8)


def _order(tensors: Mapping[str, Tensor | Joined]) -> list[str]:
    """Wide numbers first, so that each tensor is aligned to its own."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _bytes(tensor: Tensor) -> memoryview:
    if sys.byteorder != "little":
        raise MuseumError("Files can be written on little-endian machines only.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
