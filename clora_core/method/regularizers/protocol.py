"""What a regularizer is: a frozen description that, given a setting, yields one more term of the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import RecipeError
from ..step import Setting, Step

Term = Callable[[Step], Tensor]  # a scalar ≥ 0, already weighted


@dataclass(frozen=True)
class Regularizer:
    """A named extra term of the loss, arXiv number in its file's docstring. Raises RecipeError for a bad weight.

    name: its key in loss reports, in the saved recipe and in the user interface. weight: how much the term counts; 0 is
    off. everywhere_only: not for deltas that act at a word, which move no prompt without it. one_concept_only: not for
    concepts that are learned together.
    """

    name: ClassVar[str]
    everywhere_only: ClassVar[bool] = False
    one_concept_only: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise RecipeError(f"The weight of {self.name} is {self.weight}; it must be a finite number from 0.")

    def begin(self, setting: Setting) -> Term:
        """What stays fixed while one concept is learned is computed here, once."""
        raise NotImplementedError
