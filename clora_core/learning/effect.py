"""What learning one concept did to a model, measured without sampling a picture: at fixed noise, before and after.

How well a word shows what it stands for is judged as a diffusion classifier judges (Li et al. 2023, arXiv:2303.16203):
by which of several prompts the model predicts the noise on a picture best.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measure import displacement
from ..model.attach import attached
from ..model.base import Conditioning
from ..model.concept import ConceptToken
from ..museum.museum import Exhibit, Museum, viewing
from ..museum.overlap import overlap_matrix
from .learn import Learning
from .start import start_vectors

ASKED = 8  # earlier exhibits at most, spread evenly over the museum


@dataclass(frozen=True)
class Effect:
    """What one concept changed, on eight noisy ones of its own pictures.

    loss_before, loss_after: the mean squared error, with the word as it started and as it was learned. recognised: the
    share of the pictures on which the model errs less with the word than with any earlier exhibit's prompt, and than
    with none. moved: earlier word → the displacement of the predictions for its prompt (`measure.displacement`).
    overlap: earlier word → overlap of its deltas with the new ones, as `overlap_matrix` counts it.
    """

    loss_before: float
    loss_after: float
    recognised: float
    moved: Mapping[str, float]
    overlap: Mapping[str, float]


@torch.no_grad()
def effect(learning: Learning, new: Exhibit) -> Effect:
    """The effect of what was learned of the last concept. It takes some forward passes."""
    base, museum, concept, lesson = learning.base, learning.museum, learning.concepts[-1], learning.lessons[-1]
    asked = _spread(museum.exhibits, ASKED)
    prompts = [base.encode_prompts([prompt], museum.tokens) for prompt in ("", *(e.prompt or e.word for e in asked))]
    first = ConceptToken(concept.word, start_vectors(base, concept))

    def answers(conditioning_of: Callable[[Tensor], Conditioning]) -> Tensor:
        return lesson.reference(conditioning_of)[0]

    def answers_to_all() -> list[Tensor]:
        return [answers(lambda chosen, prompt=prompt: prompt[torch.zeros_like(chosen)]) for prompt in prompts]

    with viewing(base, museum.dense(), museum.gated):
        loss_before = lesson.reference_loss(first)
        unasked, *before = answers_to_all()
        with attached(base, new.deltas, new.gate):
            own, targets = lesson.reference(lambda chosen: lesson.conditioning(chosen, new.token))
            after = answers_to_all()
    errors = [(answer - targets).square().flatten(1).mean(1) for answer in (own, *after)]
    recognised = torch.stack([errors[0] < other for other in errors[1:]]).all(0)
    moved = {
        exhibit.word: displacement(then[None], now[None], unasked[None]).item()
        for exhibit, then, now in zip(asked, before, after[1:], strict=True)
    }
    overlap = {
        exhibit.word: overlap_matrix(Museum(museum.base, (exhibit, new)))[0, 1].item()
        for exhibit in asked
        if exhibit.deltas and new.deltas
    }
    return Effect(loss_before, errors[0].mean().item(), recognised.float().mean().item(), moved, overlap)


def _spread(exhibits: Sequence[Exhibit], most: int) -> list[Exhibit]:
    """At most so many, evenly over the whole, the first and the last among them."""
    count = len(exhibits)
    if count <= most:
        return list(exhibits)
    return [exhibits[place * (count - 1) // (most - 1)] for place in range(most)]
