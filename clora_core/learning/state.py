"""The complete state of a learning, to resume it exactly; in memory and in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LearningError, MuseumError
from ..museum.file.damage import sealed, undamaged
from ..museum.file.files import dump, errors_about, opened, read_metadata
from ..museum.file.json_values import array, fields, integer, json_text, json_value, number, text
from ..museum.file.replacing import replacing

FORMAT = "clora-learning-state"
VERSION = "1"
SAVE_EVERY = 50  # steps between two autosaves
FULL = ("out of memory", "allocate memory", "not enough memory")  # in the errors of torch's devices


@dataclass(frozen=True, eq=False)
class LearningState:
    """After `step` updates: all trained tensors and the optimizer's state, by name, on the CPU.

    key: the fingerprint of the learning (`key.learning_key`); other learnings cannot resume from it. losses: the total
    loss of every step so far.
    """

    key: str
    step: int
    tensors: Mapping[str, Tensor]
    losses: tuple[float, ...] = ()


class StateError(LearningError):
    """A state that this learning cannot resume from: damaged, or of another learning."""


class StoppedError(LearningError):
    """Training cannot go on as it is. `state` is that of the last finished step."""

    def __init__(self, message: str, state: LearningState) -> None:
        super().__init__(message)
        self.state = state


class NotFiniteError(StoppedError):
    """A loss or a gradient is not finite."""


class OutOfMemoryError(StoppedError, torch.OutOfMemoryError):
    """A step does not fit into memory. ComfyUI treats it like torch's own error: it unloads all models."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the memory of a device is full. torch's CPU and some GPUs raise a plain RuntimeError."""
    by_text = isinstance(error, RuntimeError) and any(text in str(error) for text in FULL)
    return by_text or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def save_state(state: LearningState, path: Path | str) -> None:
    """Write the state, and replace an older one of that name."""
    path = Path(path)
    with errors_about(path):
        state_json = json_text({"key": state.key, "step": state.step, "losses": list(state.losses)}, "The state")
        metadata = {"clora.format": FORMAT, "clora.version": VERSION, "clora.state": state_json}
        with replacing(path, "replace") as file:
            dump(file, state.tensors, lambda content: sealed(metadata, state.tensors, content))


def load_state(path: Path | str) -> LearningState:
    """Read the state, bit for bit, on the CPU. Raises MuseumError for a damaged file."""
    path = Path(path)
    with errors_about(path), opened(path) as file, undamaged(path, file):
        metadata = read_metadata(file, FORMAT, VERSION)
        if "clora.state" not in metadata:
            raise MuseumError("Its metadata has no 'clora.state'.")
        values = fields(json_value(metadata["clora.state"], "The state"), ("key", "step", "losses"), "The state")
        return LearningState(
            text(values["key"], "The state's key"),
            integer(values["step"], "The state's step", least=0),
            {name: file.get_tensor(name).clone() for name in file.keys()},
            tuple(number(loss, "A loss") for loss in array(values["losses"], "The losses")),
        )
