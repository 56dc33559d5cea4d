"""What a regularizer is: a frozen description that, given a setting, yields one more term of the loss."""

from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

from ..step import Setting, Step

Term = Callable[[Step], Tensor]  # a scalar ≥ 0, already weighted


class Regularizer(Protocol):
    """A named extra term of the loss, arXiv number in its file's docstring."""

    name: ClassVar[str]  # key in loss reports, in the saved recipe and in the user interface

    @property
    def weight(self) -> float:
        """How much the term counts; 0 is off."""
        ...

    def begin(self, setting: Setting) -> Term:
        """What stays fixed while one concept is learned is computed here, once."""
        ...
