"""The metrics of a course: what was learned, kept, confused, copied and damaged, and what it cost.

Distances between sets of pictures are MMD² (`measure.kernel_distance`) of the judge's features, per dimension, so that
features of different sizes can be compared. `drift` and `base_distance` compare pictures of the same noise, for which
the estimator is biased: where no picture changed, it is slightly negative.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..measure import final_alignment, forgetting, initial_alignment, kernel_distance
from ..museum.museum import Museum
from ..starter.course import PICTURES, Course, shown_for
from ..starter.exam import Evaluation, Examiner, drawn
from ..starter.subjects import ALL_IDENTITIES

HELD_OUT = 10_000  # the seed of held-out real pictures


def metrics(
    examiner: Examiner, subjects: Sequence[str], course: Course, before: tuple[float, Tensor], *, edits: int
) -> dict[str, Any]:
    """The metrics by name.

    before: the base model's `plain_prompts`. edits: pictures of each identity with a hat at some place; and half as
    many of every kind of edit (`exam.edited_prompts`).
    """
    first, last = [row[place] for place, row in enumerate(course.evaluations)], course.evaluations[-1]
    count = len(last[0].pictures)

    def features(pictures: Sequence[Tensor]) -> list[Tensor]:
        return [examiner.features(batch, name) for batch, name in zip(pictures, subjects, strict=True)]

    real = features([drawn(name, count, seed=HELD_OUT) for name in subjects])
    training = features([drawn(name, PICTURES, seed=course.museum.exhibits[0].recipe.seed) for name in subjects])
    early, late = (features([evaluation.pictures for evaluation in row]) for row in (first, last))
    when_learned = list(map(kernel_distance, real, early))
    at_end = list(map(kernel_distance, real, late))
    drift = list(map(kernel_distance, early[:-1], late[:-1]))
    identities = [name for name in subjects if name in ALL_IDENTITIES] if edits else []
    edited = [examiner.edits(shown_for(course.museum, name), name, count=edits) for name in identities]
    plain = [examiner.features(batch, next(iter(ALL_IDENTITIES))) for batch in (before[1], course.plain_pictures)]
    result: dict[str, Any] = {
        "subjects": list(subjects),
        "alignment": course.alignment,
        "learned": initial_alignment(course.alignment),
        "kept": final_alignment(course.alignment),
        "forgetting": forgetting(course.alignment),
        "confusion": _mean([_confused(*pair, subjects) for pair in zip(last, subjects, strict=True)]),
        "traits": _mean([evaluation.attributes for evaluation in last]),
        "distance": _mean(at_end),
        "distances_when_learned": when_learned,
        "plasticity": _mean(when_learned),
        "drift": _mean(drift),
        "distance_forgotten": _mean([now - then for now, then in zip(at_end[:-1], when_learned[:-1], strict=True)]),
        "copying": _mean([_nearest(a, b) - _nearest(a, c) for a, b, c in zip(late, training, real, strict=True)]),
        "base_damage": before[0] - course.plain,
        "base_distance": kernel_distance(*plain),
        "norms": course.norms,
        "late_norm": course.norms[-1] / course.norms[0] if course.norms[0] else 0.0,
        "stored": _stored(course.museum) / len(subjects),
        "processor_seconds": course.processor_seconds / len(subjects),
    }
    if edited:
        result["text_alignment"], result["edited"] = map(_mean, zip(*edited, strict=True))
        kinds = [examiner.edited(shown_for(course.museum, name), name, each=max(1, edits // 2)) for name in identities]
        result["edits"] = {kind: _mean([own[kind] for own in kinds]) for kind in kinds[0]}
        result["edited_all"] = _mean(list(result["edits"].values()))
    return result


def _confused(evaluation: Evaluation, subject: str, subjects: Sequence[str]) -> float:
    """The share of a subject's pictures in which another learned subject is recognized."""
    others = set(subjects) - {subject}
    return sum(name in others for name in evaluation.taken_for) / len(evaluation.taken_for)


def _nearest(sampled: Tensor, real: Tensor) -> float:
    """Mean distance of each sampled picture to the nearest of the first `PICTURES` real ones."""
    return float(torch.cdist(sampled, real[:PICTURES]).min(1).values.mean())


def _stored(museum: Museum) -> int:
    """The number of stored numbers, in all factors and words."""
    factors = sum(d.up.numel() + d.down.numel() for exhibit in museum.exhibits for d in exhibit.deltas.values())
    return factors + sum(v.numel() for token in museum.tokens for v in token.vectors.values())


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
