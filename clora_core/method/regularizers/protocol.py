"""A regularizer: a frozen value that, given a setting, adds a term to the loss."""

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
    """A named extra term of the loss; its paper is in its file's docstring. Raises RecipeError for a bad weight.

    name: in loss reports, saved recipes and the user interface. weight: of the term in the loss; 0 turns it off.
    everywhere_only: not for gated deltas, which change no prompt without the word. one_concept_only: not for concepts
    that are learned together. concepts_only: reads a `Setting` and a `Step`; without it, `AnySetting` and `AnyStep` are
    enough, so that it can protect classes of pictures too. passes: further forward passes that a step keeps for its
    backward pass. matrices: as large as a projection's weight, kept for each of them. reads_past: reads
    `Past.total` in every step.
    """

    name: ClassVar[str]
    everywhere_only: ClassVar[bool] = False
    one_concept_only: ClassVar[bool] = False
    concepts_only: ClassVar[bool] = True
    passes: ClassVar[int] = 0
    matrices: ClassVar[int] = 0
    reads_past: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise RecipeError(f"The weight of {self.name} is {self.weight}; it must be a finite number from 0.")

    def begin(self, setting: Setting) -> Term:
        """Compute everything that is fixed while a concept is learned, and return the term."""
        raise NotImplementedError
