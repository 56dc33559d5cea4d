"""Finished results and interrupted states of training, stored on disk under a key of all their inputs.

A result is a museum file of the new exhibits: one, or several that were learned together. The losses, pictures and
diary of the run are among the last exhibit's facts while it is in the store.
"""

import base64
import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ...clora_core.errors import MuseumError
from ...clora_core.learning.state import LearningState, StateError, load_state, save_state
from ...clora_core.model.base import Fingerprint
from ...clora_core.museum.file import load_museum, save_museum
from ...clora_core.museum.file.json_values import array, mapping, number
from ...clora_core.museum.file.replacing import read_if_intact, set_aside
from ...clora_core.museum.museum import Exhibit, Museum
from ...clora_core.picture_files import PIXELS_LIMIT
from ...clora_core.pictures import as_floats, to_bytes, to_picture
from ..log import log

LIMIT_BYTES = 4 * 2**30  # or a tenth of the free disk space, where that is more
STORED = ("*.safetensors", "*.safetensors.damaged", "*.backup")  # what counts towards the limit
LOSSES, PICTURES, DIARY = "store.losses", "store.pictures", "store.diary"

Content = TypeVar("Content")


@dataclass(frozen=True, eq=False)
class Result:
    """The result of one training run.

    exhibits: one, or several that were learned together, in order. losses: one per step. pictures: samples of the new
    words, (n, 3, h, w) in [-1, 1], in 8 bits. diary: the final state of the panel, plain JSON.
    """

    exhibits: tuple[Exhibit, ...]
    losses: tuple[float, ...]
    pictures: Tensor
    diary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """A folder of results and states. When it exceeds its limit, the least recently used files are deleted.

    limit_bytes: 0 stands for LIMIT_BYTES, which grows with the free disk space. not_kept: why the folder is temporary;
    "" if it is not.
    """

    folder: Path
    limit_bytes: int = 0
    not_kept: str = ""

    @property
    def refusal(self) -> str:
        """Why this folder cannot store anything, as one sentence; "" if it can."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(self.folder, os.R_OK | os.W_OK | os.X_OK) else "no permission to read and write"
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            reason = error.strerror
        except OSError:  # such as a full disk, which `_write` reports if it lasts
            reason = ""
        return reason and f"results cannot be stored in '{self.folder}' ({reason}): running this step again retrains"

    def result(self, key: str) -> Result | None:
        """The result under this key, if it is still stored."""
        return self._read(self._result_path(key), _read_result)

    def keep(self, key: str, base: Fingerprint, result: Result, *, state_key: str = "") -> None:
        """Store a result. The state under `state_key`, or the same key, is no longer needed and is deleted."""
        more = {LOSSES: list(result.losses), PICTURES: _encoded(result.pictures), DIARY: dict(result.diary)}
        *others, last = result.exhibits
        museum = Museum(base, (*others, dataclasses.replace(last, facts={**last.facts, **more})))
        if self._write(self._result_path(key), lambda path: save_museum(museum, path, overwrite=True)):
            self._state_path(state_key or key).unlink(missing_ok=True)

    def state(self, key: str) -> LearningState | None:
        """The state of an interrupted run under this key, if there is one."""
        return self._read(self._state_path(key), load_state)

    def keep_state(self, key: str, state: LearningState) -> None:
        """Store the state of a run."""
        self._write(self._state_path(key), lambda path: save_state(state, path))

    def furthest_state(self, key: str, steps: int) -> LearningState | None:
        """The state with the most steps, up to that many: of an interrupted run, or kept after one."""
        state = self.state(key)
        if state and state.step > steps:  # of a longer run, which may still resume from it
            longer = self.kept._state_path(_at(key, state.step))
            longer.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._state_path(key), longer)
            self.kept._clean(longer)
            state = None
        for step in self.kept.steps_of(key):
            kept = self.kept.state(_at(key, step)) if (state.step if state else 0) < step <= steps else None
            if kept and kept.step == step:  # the file has its own name
                return kept
        return state

    def keep_state_along(self, key: str, state: LearningState) -> None:
        """Keep the state also after the run, so that others with more or fewer steps begin with it."""
        self.kept.keep_state(_at(key, state.step), state)

    def steps_of(self, key: str) -> list[int]:
        """The steps of the states that were kept under a key, the most first."""
        steps = (path.name.split(".")[1] for path in self.folder.glob(f"{key}.*.state.safetensors"))
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def refuse_state(self, key: str, state: LearningState, error: StateError) -> None:
        """Set aside a state that the run under this key cannot resume from."""
        own = self.state(key)
        kept = self.kept._state_path(_at(key, state.step))
        set_aside(self._state_path(key) if own and own.step == state.step else kept, error, _warn)

    @property
    def kept(self) -> "Store":
        """The folder beside this one with states that are kept after their run."""
        return Store(self.folder.with_name("kept"), self.limit_bytes)

    def _result_path(self, key: str) -> Path:
        return self.folder / f"{key}.result.safetensors"

    def _state_path(self, key: str) -> Path:
        return self.folder / f"{key}.state.safetensors"

    def _read(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        try:
            if not path.is_file():
                return None
        except PermissionError:
            return None
        content = read_if_intact(path, read, _warn)
        with suppress(OSError):
            os.utime(path)
        return content

    def _write(self, path: Path, save: Callable[[Path], object]) -> bool:
        """Whether the file could be written. A full disk is only logged, so that it does not cost the result."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(path)
            self._clean(path)
        except (MuseumError, OSError) as error:
            log.warning("C-LoRA: a result cannot be stored. %s", error)
            return False
        return True

    def _clean(self, newest: Path) -> None:
        """Delete the least recently used files until the others fit the limit, but never the newest."""
        files = [path for pattern in STORED for path in self.folder.glob(pattern) if path != newest]
        sizes = {path: path.stat() for path in files}
        total = newest.stat().st_size + sum(stat.st_size for stat in sizes.values())
        limit = self.limit_bytes or max(LIMIT_BYTES, shutil.disk_usage(self.folder).free // 10)
        for path in sorted(files, key=lambda path: sizes[path].st_mtime_ns):
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path].st_size


def _warn(text: str) -> None:
    log.warning("C-LoRA: %s", text)


def _at(key: str, step: int) -> str:
    """The key of the state that is kept of a run at this step."""
    return f"{key}.{step}"


def _read_result(path: Path) -> Result:
    try:
        *others, last = load_museum(path).exhibits
        facts = dict(last.facts)
        losses = tuple(number(loss, "A loss") for loss in array(facts.pop(LOSSES), "The losses"))
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
