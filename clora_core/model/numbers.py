"""The numbers that a model family learns well with. In a file of its own, since recipes name them too."""

from dataclasses import dataclass
from typing import Literal

from .precision import Precision

LearningRateSchedule = Literal["constant", "cosine", "linear"]
Token = Literal["learned", "frozen"]


@dataclass(frozen=True)
class Numbers:
    """What `auto` stands for. The defaults are those of the C-LoRA paper for Stable Diffusion, where it gives them.

    fitted_steps: of recipes with a word fit, which need fewer where this was measured; None for `steps`. batch_size:
    pictures per update; on a small device in several parts. vectors: of a trigger word. precision: None for the fastest
    one that the device has. token: whether the word's vectors are learned, or those of a known phrase, so that a large
    text encoder need not stay loaded. threads: of the processor; None for all.
    """

    rank: int = 16
    steps: int = 400
    fitted_steps: int | None = None
    learning_rate: float = 5e-4
    token_learning_rate: float = 5e-3
    batch_size: int = 4
    schedule: LearningRateSchedule = "constant"
    vectors: int = 1
    precision: Precision | None = None
    token: Token = "learned"
    threads: int | None = None

    def steps_of(self, *, word_fit: bool) -> int:
        """Of a recipe with or without a word fit."""
        return (self.fitted_steps if word_fit else None) or self.steps
