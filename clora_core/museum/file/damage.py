"""Detect damaged files: the metadata holds a seal, which is checked whenever the whole file is read.

The seal is the SHA-256 of the `clora.…` metadata, of every tensor's name, dtype and shape, and of the hash of all
tensors. It ignores the metadata that LoRA managers may rewrite. Older museums only have the hash of their tensors
(`sshs_model_hash`); a file with neither is not checked.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ...errors import MuseumError
from .backups import backups_of
from .files import DTYPE_NAMES, content_hash
from .joined import Joined

SEAL = "clora.hash"
TENSORS_HASH = "sshs_model_hash"


class DamagedError(MuseumError):
    """The file's content does not match its hash."""


def sealed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor | Joined], content: str) -> dict[str, str]:
    """The metadata with its seal. content: the `content_hash` of the tensors."""
    layout = ((name, DTYPE_NAMES.get(tensor.dtype, ""), list(tensor.shape)) for name, tensor in tensors.items())
    return {**metadata, SEAL: _seal(metadata, layout, content)}


@contextmanager
def undamaged(path: Path, file: safe_open) -> Iterator[None]:
    """Hash the whole file in a thread while the block reads it. Raises DamagedError at the end if the hash differs.

    DamagedError also replaces any error that the damage causes in the block.
    """
    metadata = file.metadata() or {}
    if SEAL not in metadata and TENSORS_HASH not in metadata:
        yield
        return
    with ThreadPoolExecutor(1) as executor:
        content = executor.submit(content_hash, {name: file.get_tensor(name) for name in file.keys()})
        try:
            yield
        finally:
            _check(path, file, metadata, content.result())


def _check(path: Path, file: safe_open, metadata: Mapping[str, str], content: str) -> None:
    if SEAL in metadata:
        slices = ((name, file.get_slice(name)) for name in file.keys())
        layout = ((name, tensor.get_dtype(), list(tensor.get_shape())) for name, tensor in slices)
        intact = metadata[SEAL] == _seal(metadata, layout, content)
    else:
        intact = metadata[TENSORS_HASH] == content
    if not intact:
        path = path.resolve()
        former = path.with_name(f"{path.stem}.bak{path.suffix}")  # the backup name of earlier versions
        backups = [backup.name for backup in (former, *backups_of(path)) if backup.exists()]
        advice = f"Its backup '{backups[-1]}' may be intact." if backups else "Use another copy of it."
        raise DamagedError(
            f"The file is damaged, or another program has changed it: its content does not match its hash. {advice}"
        )


def _seal(metadata: Mapping[str, str], layout: Iterable[tuple[str, str, list[int]]], content: str) -> str:
    ours = sorted((key, value) for key, value in metadata.items() if key.startswith("clora.") and key != SEAL)
    return hashlib.sha256(json.dumps([ours, sorted(layout), content]).encode()).hexdigest()
