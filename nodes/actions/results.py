"""What was learned, kept on disk under the key of all that went into it: finished results and interrupted states.

A file is a museum of the new exhibits: one, or as many as were learned together. What else came out of the learning,
its losses and pictures, stands among the last one's facts as long as it is in here.
"""

import base64
import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ...clora_core.errors import CLoRAError, MuseumError
from ...clora_core.learning.state import LearningState, StateError, load_state, save_state
from ...clora_core.model.base import Fingerprint
from ...clora_core.museum.file import load_museum, save_museum
from ...clora_core.museum.file.files import refused_by_the_system
from ...clora_core.museum.file.json_values import listed, mapping, number
from ...clora_core.museum.file.replacing import set_aside
from ...clora_core.museum.museum import Exhibit, Museum
from ...clora_core.pictures import PIXELS_LIMIT, as_floats, to_bytes, to_picture
from ..log import log

LIMIT_BYTES = 4 * 2**30
KEPT = ("*.safetensors", "*.safetensors.damaged", "*.backup")  # what the limit is for
LOSSES, PICTURES, DIARY = "store.losses", "store.pictures", "store.diary"

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Result:
    """What came out of one learning.

    exhibits: one, or as many as were learned together, in order. losses: of every step. pictures: what the new words
    show, (n, 3, h, w) in [-1, 1], kept to 8 bits. diary: what the panel showed at the end, plain JSON.
    """

    exhibits: tuple[Exhibit, ...]
    losses: tuple[float, ...]
    pictures: Tensor
    diary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """A folder of results and states. When it grows over its limit, what was not asked for the longest goes first.

    not_kept: why nothing in here can be asked for the next time; "" where all can.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES
    not_kept: str = ""

    @property
    def refusal(self) -> str:
        """Why this folder is no place to keep anything, as one sentence; "" where it is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(self.folder, os.R_OK | os.W_OK | os.X_OK) else "you may not read and write there"
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            reason = error.strerror
        except OSError:  # a full disk and such, which writing says if it lasts
            reason = ""
        return reason and f"nothing is kept in '{self.folder}' ({reason}): the same step again learns anew"

    def result(self, key: str) -> Result | None:
        """What was learned under this key, if it still is in here."""
        return self._found(self._result_path(key), _read)

    def keep(self, key: str, base: Fingerprint, result: Result) -> None:
        """Keep what was learned; the state on the way there is no longer needed."""
        more = {LOSSES: list(result.losses), PICTURES: _encoded(result.pictures), DIARY: dict(result.diary)}
        *others, last = result.exhibits
        museum = Museum(base, (*others, dataclasses.replace(last, facts={**last.facts, **more})))
        if self._write(self._result_path(key), lambda path: save_museum(museum, path, overwrite=True)):
            self._state_path(key).unlink(missing_ok=True)

    def state(self, key: str) -> LearningState | None:
        """Where the learning under this key was interrupted, if it was."""
        return self._found(self._state_path(key), load_state)

    def keep_state(self, key: str, state: LearningState) -> None:
        """Keep where a learning stands."""
        self._write(self._state_path(key), lambda path: save_state(state, path))

    def refuse_state(self, key: str, error: StateError) -> None:
        """Set a state aside that the learning under this key cannot go on from."""
        self._set_aside(self._state_path(key), error)

    def _result_path(self, key: str) -> Path:
        return self.folder / f"{key}.result.safetensors"

    def _state_path(self, key: str) -> Path:
        return self.folder / f"{key}.state.safetensors"

    def _found(self, path: Path, read: Callable[[Path], Found]) -> Found | None:
        try:
            if not path.is_file():
                return None
            found = read(path)
        except PermissionError:
            return None
        except MuseumError as error:
            if isinstance(error.__cause__, PermissionError):  # of another user
                log.warning("C-LoRA: a kept result may not be read; it will be learned anew. %s", error)
                return None
            if refused_by_the_system(error):  # the file may be whole: Run can find it again
                raise
            self._set_aside(path, error)
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    def _set_aside(self, path: Path, error: CLoRAError) -> None:
        log.warning("C-LoRA: %s It is set aside as '%s', and is learned anew.", error, set_aside(path).name)

    def _write(self, path: Path, save: Callable[[Path], object]) -> bool:
        """Whether it could be kept. A full disk is said, and survived for the sake of what was learned."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(path)
            self._clean(path)
        except (MuseumError, OSError) as error:
            log.warning("C-LoRA: a result cannot be kept for the next time. %s", error)
            return False
        return True

    def _clean(self, newest: Path) -> None:
        """Remove files, the longest unused first, until the others fit the limit; never the newest."""
        files = [path for pattern in KEPT for path in self.folder.glob(pattern) if path != newest]
        sizes = {path: path.stat() for path in files}
        total = newest.stat().st_size + sum(stat.st_size for stat in sizes.values())
        for path in sorted(files, key=lambda path: sizes[path].st_mtime_ns):
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path].st_size


def _read(path: Path) -> Result:
    try:
        *others, last = load_museum(path).exhibits
        facts = dict(last.facts)
        losses = tuple(number(loss, "A loss") for loss in listed(facts.pop(LOSSES), "The losses"))
        pictures = _decoded(facts.pop(PICTURES))  # type: ignore[arg-type]
        diary = mapping(facts.pop(DIARY, {}), "The diary")
    except (KeyError, TypeError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MuseumError(f"{path.name}: its losses or pictures are missing ({error}).") from None
    return Result((*others, dataclasses.replace(last, facts=facts)), losses, pictures, diary)


def _encoded(pictures: Tensor) -> list[str]:
    encoded = []
    for picture in pictures:
        to_picture(picture).save(buffer := io.BytesIO(), "PNG")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return encoded


def _decoded(encoded: list[str]) -> Tensor:
    files = [Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) for text in encoded]
    if len({file.size for file in files}) != 1 or len(files) * files[0].width * files[0].height > PIXELS_LIMIT:
        raise ValueError(f"its pictures are of sizes {[file.size for file in files]}")
    return as_floats(torch.stack([to_bytes(file) for file in files]))
