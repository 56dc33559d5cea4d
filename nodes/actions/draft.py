"""What travels to a Train Step: a concept that still lacks its pictures, and one that has them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...clora_core.model.concept import TEMPLATES, Concept, Kind


@dataclass(frozen=True)
class ConceptDraft:
    """A Concept without pictures and captions. Refuses what no Concept could be, with the engine's own sentences."""

    word: str
    kind: Kind = "object"
    template: str = ""
    vectors: int = 1
    start: str = ""
    token_seed: int = 0

    def __post_init__(self) -> None:
        self.with_pictures(torch.zeros(1, 3, 1, 1))

    @property
    def prompt(self) -> str:
        """The template with the word filled in."""
        return (self.template or TEMPLATES[self.kind]).replace("{word}", self.word)

    def with_pictures(self, pictures: Tensor, captions: tuple[str, ...] = ()) -> Concept:
        """The concept, with pictures (n, 3, h, w) in [-1, 1] and one caption for each, or none."""
        return Concept(
            self.word, pictures, self.kind, self.template, captions, self.vectors, self.start, self.token_seed
        )


@dataclass(frozen=True, eq=False)
class Companion:
    """A concept for a Train Step to learn, with others at the same time or alone.

    images: (n, h, w, c) in 0..1, as the host has them; a list of such may be of several sizes. captions: a text with
    one line for each picture, or one text each.
    """

    draft: ConceptDraft
    images: Sequence[Tensor]
    captions: Sequence[str] = ()
