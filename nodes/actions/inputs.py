"""A concept and its pictures, as they reach a Train Step."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...clora_core.model.concept import Concept


@dataclass(frozen=True, eq=False)
class ConceptInputs:
    """The inputs of a Train Step or a Companion for one concept.

    concept: from a Concept Token, with placeholder pictures. images: stacks (n, h, w, c) in 0..1; the stacks can
    differ in size. captions: one text with a line per picture, or one text per picture. masks: stacks (n, h, w) in
    0..1, one mask per picture, or none.
    """

    concept: Concept
    images: Sequence[Tensor]
    captions: Sequence[str] = ()
    masks: Sequence[Tensor] = ()
