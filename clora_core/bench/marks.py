"""One course in numbers: what was learned, kept, confused, copied and damaged, and what it cost.

Distances between sets of pictures are MMD² (`measure.kernel_distance`) of the features that the judge reads
attributes, or styles, from; they are computed per dimension, so they can be compared between features of other sizes.
`drift` and `base_distance` compare pictures of the same noise, for which the estimator is not unbiased: where no
picture changed, it is somewhat below zero.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..measure import drop_per_step, final_alignment, forgetting, initial_alignment, kernel_distance, worst_drop
from ..museum.museum import Museum
from ..starter.course import PICTURES, Course
from ..starter.exam import Examiner, Sight, drawn
from ..starter.subjects import EVERYBODY

HELD_OUT = 10_000  # the seed of real pictures that nothing was learned from


def marks(
    examiner: Examiner, subjects: Sequence[str], course: Course, before: tuple[float, Tensor], *, dressed: int
) -> dict[str, Any]:
    """before: what plain prompts got of the untouched base, and their pictures. dressed: edited pictures of each
    identity; styles have none, and no marks for them."""
    first, last = [row[place] for place, row in enumerate(course.sights)], course.sights[-1]
    count = len(last[0].pictures)

    def features(pictures: Sequence[Tensor]) -> list[Tensor]:
        return [examiner.features(each, name) for each, name in zip(pictures, subjects, strict=True)]

    real = features([drawn(name, count, seed=HELD_OUT) for name in subjects])
    taught = features([drawn(name, PICTURES, seed=course.museum.exhibits[0].recipe.seed) for name in subjects])
    early, late = features([sight.pictures for sight in first]), features([sight.pictures for sight in last])
    when_learned = _each(kernel_distance, real, early)
    at_end = _each(kernel_distance, real, late)
    drift = _each(kernel_distance, early[:-1], late[:-1])
    asked = [name for name in subjects if name in EVERYBODY] if dressed else []
    edited = [examiner.dressed(_seen(course, name), name, count=dressed) for name in asked]
    plain = [examiner.features(each, next(iter(EVERYBODY))) for each in (before[1], course.plain_pictures)]
    return {
        "subjects": list(subjects),
        "alignment": course.alignment,
        "learned": initial_alignment(course.alignment),
        "kept": final_alignment(course.alignment),
        "forgetting": forgetting(course.alignment),
        "worst_drop": worst_drop(course.alignment),
        "drop_per_step": drop_per_step(course.alignment),
        "confusion": _mean([_confused(sight, name, subjects) for sight, name in zip(last, subjects, strict=True)]),
        "traits": _mean([sight.attributes for sight in last]),
        "image_alignment": _mean(_each(_cosine, real, late)),
        "distance": _mean(at_end),
        "distances_when_learned": when_learned,
        "plasticity": _mean(when_learned),
        "drift": _mean(drift),
        "distance_forgotten": _mean([now - then for now, then in zip(at_end[:-1], when_learned[:-1], strict=True)]),
        "copying": _mean([_nearest(a, b) - _nearest(a, c) for a, b, c in zip(late, taught, real, strict=True)]),
        "base_damage": before[0] - course.plain,
        "base_distance": kernel_distance(*plain),
        "norms": course.norms,
        "late_norm": course.norms[-1] / course.norms[0] if course.norms[0] else 0.0,
        "stored": _stored(course.museum) / len(subjects),
        "processor_seconds": course.processor_seconds / len(subjects),
        **_of_edits(edited),
    }


def _of_edits(edited: Sequence[tuple[float, float]]) -> dict[str, float]:
    if not edited:
        return {}
    found, still = zip(*edited, strict=True)
    return {"text_alignment": _mean(found), "edited": _mean(still)}


def _seen(course: Course, subject: str) -> Museum:
    separate = course.museum.exhibits[0].recipe.method == "separate"
    return course.museum.only([f"<{subject}>"]) if separate else course.museum


def _confused(sight: Sight, subject: str, subjects: Sequence[str]) -> float:
    """The share of a subject's pictures that is taken for another one that was learned."""
    others = set(subjects) - {subject}
    return sum(name in others for name in sight.taken_for) / len(sight.taken_for)


def _cosine(one: Tensor, other: Tensor) -> float:
    """Mean cosine over all pairs, as image alignment is measured with CLIP (Custom Diffusion, arXiv:2212.04488)."""
    return float((torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(other).T).mean())


def _nearest(sampled: Tensor, real: Tensor) -> float:
    """Mean distance of each sampled picture to the nearest of as many real ones as both sets of them have."""
    return float(torch.cdist(sampled, real[:PICTURES]).min(1).values.mean())


def _stored(museum: Museum) -> int:
    """Numbers in all factors and words."""
    factors = sum(d.up.numel() + d.down.numel() for exhibit in museum.exhibits for d in exhibit.deltas.values())
    return factors + sum(v.numel() for token in museum.tokens for v in token.vectors.values())


def _each(measure: Any, ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    return [measure(one, other) for one, other in zip(ones, others, strict=True)]


def _mean(values: Sequence[float] | Mapping) -> float:
    return statistics.fmean(values) if values else 0.0
