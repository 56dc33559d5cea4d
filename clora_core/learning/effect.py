"""What learning one concept did to a model, measured without sampling a picture: at fixed noise, before and after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..measure import displacement
from ..model.attach import attached
from ..model.base import Conditioning
from ..museum.museum import Exhibit, Museum, viewing
from ..museum.overlap import overlap_matrix
from .learn import Learning
from .lesson import REFERENCE_DRAWS
from .start import first_token

Item = TypeVar("Item")

ASKED = 8  # earlier exhibits at most, spread evenly over the museum


@dataclass(frozen=True)
class Effect:
    """What one concept changed, on eight noisy ones of its own pictures.

    loss_before, loss_after: the mean squared error, with the word as it started and as it was learned. moved: earlier
    word → the displacement of the predictions for its prompt (`measure.displacement`). overlap: earlier word → overlap
    of its deltas with the new ones, as `overlap_matrix` counts it.
    """

    loss_before: float
    loss_after: float
    moved: Mapping[str, float]
    overlap: Mapping[str, float]


def passes(museum: Museum) -> int:
    """How many noisy pictures `effect` shows the model when this museum was there before."""
    return REFERENCE_DRAWS * (2 * min(len(museum.exhibits), ASKED) + 3)


@torch.no_grad()
def effect(learning: Learning, new: Exhibit, report: Callable[[int, int], None] | None = None) -> Effect:
    """The effect of what was learned of the last concept. It takes some forward passes.

    `report(done, total)` is called after every batch, counted in pictures, and may raise to stop.
    """
    base, museum, concept, lesson = learning.base, learning.museum, learning.concepts[-1], learning.lessons[-1]
    asked = spread(museum.exhibits, ASKED)
    prompts = [base.encode_prompts([prompt], museum.tokens) for prompt in ("", *(e.prompt or e.word for e in asked))]
    first = first_token(base, concept, learning.recipe)
    done = 0

    def count(pictures: int) -> None:
        nonlocal done
        done += pictures
        if report:
            report(done, passes(museum))

    def answers(prompts: Sequence[Conditioning]) -> list[Tensor]:
        return [lesson.reference(lambda chosen, p=prompt: p[torch.zeros_like(chosen)], count)[0] for prompt in prompts]

    with viewing(base, museum.compact(), museum.gated):
        loss_before = lesson.reference_loss(first, report=count)
        unasked, *before = answers(prompts)
        with attached(base, new.deltas, new.gate):
            loss_after = lesson.reference_loss(new.token, report=count)
            after = answers(prompts[1:])
    moved = {
        exhibit.word: displacement(then[None], now[None], unasked[None]).item()
        for exhibit, then, now in zip(asked, before, after, strict=True)
    }
    overlap = {
        exhibit.word: overlap_matrix(Museum(museum.base, (exhibit, new)))[0, 1].item()
        for exhibit in asked
        if exhibit.deltas and new.deltas
    }
    return Effect(loss_before, loss_after, moved, overlap)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly spread, including the first and the last."""
    count = len(items)
    if count <= most:
        return list(items)
    return [items[place * (count - 1) // (most - 1)] for place in range(most)]
