"""Safetensors files: written whole or not at all, read with suspicion.

The format (https://huggingface.co/docs/safetensors): 8 bytes of header size, a JSON header, the tensors' bytes. It is
written here, not by the library, because the library's order of the metadata differs from run to run, and the same
museum shall give the same bytes.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import CLoRAError, MuseumError
from ...texts import unprintable
from .joined import Joined, parts

Existing = Literal["refuse", "keep beside", "replace"]

SUFFIX = ".safetensors"
HEADER_LIMIT = 64 * 1024 * 1024  # bytes
ENTRIES_LIMIT = 1_000_000  # commas in the header
OPENINGS = 100  # tries to open a file that is replaced at just that moment

Identity = tuple[int, ...]
DEVICE_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # on Windows, in every folder

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


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, existing: Existing) -> None:
    """Write the file so that its name stands, at every moment, for a whole file: the old one or the new one."""
    with replacing(path, existing) as file:
        dump(file, tensors, lambda _: metadata)


class ChangedMeanwhileError(MuseumError):
    """Another program has written the file since it was read; its work would be lost."""


@contextmanager
def replacing(path: Path, existing: Existing, *, read: Identity | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the name when the block is left without an error, and is gone otherwise.

    existing: what happens to a file of that name. "keep beside" renames it to `<name>.bak.safetensors`, in the place of
    an older one. read: which file of that name the new one was made of; ChangedMeanwhileError if there is another now.
    """
    _check_target(path)
    if existing == "refuse" and path.exists():
        raise _taken()
    path = path.resolve()  # a link stays a link
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _alone_in(path.parent):
            if read and identity(path) != read:
                raise ChangedMeanwhileError("Another program has changed it since it was read. Do it again.")
            if existing == "refuse":
                _link_new(temporary, path)
            else:
                if existing == "keep beside" and path.exists():
                    _keep(path)
                os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def check_target(path: Path | str) -> None:
    """Raise MuseumError where `write` would for the name or the folder; worth asking before a long work."""
    path = Path(path)
    with errors_about(path):
        _check_target(path)
        if not os.access(path.parent, os.W_OK):
            raise MuseumError(f"You may not write into '{path.parent}'. Choose another folder.")


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


def backup_of(path: Path) -> Path:
    """Where the old file is kept when a new one takes its name."""
    return path.with_name(f"{path.stem}.bak{SUFFIX}")


def _check_size(path: Path) -> None:
    """Refuse a header whose parsing alone would take much time or memory."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            found = f"Its header claims {size} bytes; at most {HEADER_LIMIT} are read."
            raise MuseumError(f"{found} Is it a safetensors file?")
        if (entries := file.read(size).count(b",")) > ENTRIES_LIMIT:
            raise MuseumError(f"Its header has about {entries} entries; at most {ENTRIES_LIMIT} are read.")


def _check_target(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise MuseumError(f"The name must end in '{SUFFIX}'.")
    if odd := unprintable(path.name):
        raise MuseumError(f"The name {path.name!r} holds {odd!r}, which is no printable character. Choose another.")
    if DEVICE_NAME.fullmatch(path.name):
        raise MuseumError(
            "Windows keeps this name for a device, so the file could not be copied there. Choose another."
        )
    if not path.parent.is_dir():
        raise MuseumError(f"There is no folder '{path.parent}'. Create it first, or choose another.")
    if path.is_dir():
        raise MuseumError("A folder has this name. Choose another.")


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


def _temporary(path: Path) -> Path:
    """A short name, since file systems limit its length; hidden, and not found by lists of models."""
    return path.with_name(f".clora-{secrets.token_hex(8)}.tmp")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While entered, no other process puts a file into its place there, as far as they ask for it in this way.

    Windows has no such lock, and some file systems neither: there the last of two that end at once wins.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _keep(path: Path) -> None:
    """Give the file its second name. Its first one never stands empty."""
    second = _temporary(path)
    try:
        try:
            os.link(path, second)
        except OSError:  # a file system without hard links
            shutil.copy2(path, second)
        os.replace(second, backup_of(path))
    finally:
        second.unlink(missing_ok=True)


def _link_new(temporary: Path, path: Path) -> None:
    """Take a name that must be free, even of a file that came while this one was written."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken() from error
    except OSError as error:  # a file system without hard links
        if path.exists():
            raise _taken() from error
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut. Windows knows no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems refuse; the file itself is safe
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _taken() -> MuseumError:
    return MuseumError("A file of this name exists already. Choose another name, or ask to overwrite it.")
