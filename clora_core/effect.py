"""What learning one concept did to a model, measured without sampling a picture: at fixed noise, before and after.

No classifier can judge what a word of somebody's own should look like. What can be said of any model is how well it
predicts the noise on the concept's own pictures, and how far its answers to earlier prompts have moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attach import attached
from .base import Base, Conditioning
from .concept import Concept, ConceptToken
from .lesson import Lesson
from .measure import overlap_matrix
from .museum import Exhibit, Museum, shown
from .recipe import Recipe
from .seeds import seeded
from .start import start_vectors

ASKED = 8  # earlier exhibits at most, spread evenly over the museum
DRAWS = 4  # noisy pictures that each of them is asked about


@dataclass(frozen=True)
class Effect:
    """What one concept changed.

    loss_before, loss_after: the mean squared error on the concept's own pictures at the same noise, with the word as it
    started and as it was learned. drift: earlier word → ‖after - before‖ / ‖before‖ of the predictions for its prompt.
    overlap: earlier word → overlap of its deltas with the new ones, as `overlap_matrix` counts it.
    """

    loss_before: float
    loss_after: float
    drift: Mapping[str, float]
    overlap: Mapping[str, float]


@torch.no_grad()
def effect(base: Base, museum: Museum, new: Exhibit, concept: Concept, recipe: Recipe) -> Effect:
    """The effect of learning `new` after all that the museum holds. It takes some forward passes."""
    asked = _spread(museum.exhibits, ASKED)
    lesson = Lesson.prepared(base, concept, recipe)
    prompts = [base.encode_prompts([exhibit.prompt or exhibit.word], museum.tokens) for exhibit in asked]
    first = ConceptToken(concept.word, start_vectors(base, concept))
    with shown(base, museum.dense(), museum.gated):
        loss_before = lesson.reference_loss(first)
        before = [_predicted(lesson, prompt) for prompt in prompts]
        with attached(base, new.deltas, new.gate):
            loss_after = lesson.reference_loss(new.token)
            after = [_predicted(lesson, prompt) for prompt in prompts]
    drift = {
        exhibit.word: ((now - then).norm() / then.norm()).item()
        for exhibit, then, now in zip(asked, before, after, strict=True)
    }
    overlap = {
        exhibit.word: overlap_matrix(Museum(museum.base, (exhibit, new)))[0, 1].item()
        for exhibit in asked
        if exhibit.deltas and new.deltas
    }
    return Effect(loss_before, loss_after, drift, overlap)


def _spread(exhibits: Sequence[Exhibit], most: int) -> list[Exhibit]:
    """At most so many, evenly over the whole, the first and the last among them."""
    count = len(exhibits)
    if count <= most:
        return list(exhibits)
    return [exhibits[place * (count - 1) // (most - 1)] for place in range(most)]


def _predicted(lesson: Lesson, prompt: Conditioning) -> Tensor:
    """What the model says to one prompt about the new pictures at even amounts of noise: (draws, c, h, w)."""
    base, schedule = lesson.base, lesson.base.schedule
    count = len(schedule.alphas_cumprod)
    timesteps = torch.arange(DRAWS) * count // DRAWS + count // (2 * DRAWS)
    latents = lesson.latents[0, torch.arange(DRAWS) % lesson.latents.shape[1]]
    noise = torch.randn(latents.shape, generator=seeded("effect", lesson.recipe.seed))
    noisy = schedule.noised(latents, noise, timesteps).to(base.device)
    timesteps = timesteps.to(base.device)
    rows = torch.zeros(lesson.recipe.batch_size, dtype=torch.long, device=prompt.states.device)
    parts = zip(noisy.split(len(rows)), timesteps.split(len(rows)), strict=True)
    return torch.cat([base.predict(part, times, prompt[rows[: len(part)]]) for part, times in parts])
