"""A learning that was interrupted, complete enough to go on as if it had not been."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LearningState:
    """After `step` updates: all that is trained and all that the optimizer remembers, by name, on the CPU.

    key: the fingerprint of everything that went in (`learn.learning_key`); a state resumes only what it was taken from.
    losses: the total loss of every step so far.
    """

    key: str
    step: int
    tensors: Mapping[str, Tensor]
    losses: tuple[float, ...] = ()
