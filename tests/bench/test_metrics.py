"""The metrics of a course against loops over its pictures, which are drawn, not sampled."""

import pytest
import torch
from torch import Tensor

from clora_core.bench.metrics import HELD_OUT, metrics
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.museum.museum import Exhibit, Museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import PICTURES, Course, starter_recipe
from clora_core.starter.exam import Evaluation, Examiner, drawn
from clora_core.starter.judge import load_judge

SUBJECTS = ("ada", "dex", "finn")
SAMPLES, SEED = 6, 4


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner(open_base("starter"), load_judge())


def sampled(subject: str, after: int) -> Tensor:
    """The "samples" of a subject after each task: different drawings."""
    return drawn(subject, SAMPLES, seed=100 * after + 7)


def recognized_as(subject: str, after: int) -> list[str]:
    """At the end, two of six pictures are recognized as other learned subjects, and one as a subject not learned."""
    others = [name for name in SUBJECTS if name != subject]
    return [subject] * 3 + others + ["gus"] if after == 2 else [subject] * SAMPLES


@pytest.fixture(scope="module")
def course(examiner: Examiner) -> Course:
    evaluations = [
        [
            Evaluation(
                recognized_as(name, after).count(name) / SAMPLES,
                0.1 * after + 0.2 * place,
                recognized_as(name, after),
                sampled(name, after),
            )
            for place, name in enumerate(SUBJECTS[: after + 1])
        ]
        for after in range(len(SUBJECTS))
    ]
    place = next(iter(examiner.base.slots))
    out, width = place.shape
    exhibits = tuple(
        Exhibit(
            ConceptToken(f"<{name}>", {"clip_l": torch.zeros(1, 2, 5)}),
            {place: LowRank(torch.full((out, 1), size), torch.ones(1, width))},
            starter_recipe("c-lora", seed=SEED),
        )
        for name, size in zip(SUBJECTS, (4.0, 2.0, 1.0), strict=True)
    )
    plain = drawn("gus", SAMPLES, seed=3)
    return Course(Museum(examiner.base.fingerprint, exhibits), evaluations, 0.7, plain, 9.0, 6.0, 1.0)


@pytest.fixture(scope="module")
def result(examiner: Examiner, course: Course) -> dict:
    return metrics(examiner, SUBJECTS, course, (0.9, drawn("gus", SAMPLES, seed=2)), edits=0)


def far(examiner: Examiner, x: Tensor, y: Tensor) -> float:
    """MMD² of the judge's features by loops over pairs of pictures."""
    xs, ys = (examiner.features(each, "ada").double() for each in (x, y))

    def k(a: Tensor, b: Tensor) -> float:
        return float((a * b).mean() + 1) ** 3

    def apart(them: Tensor) -> float:
        pairs = [(a, b) for i, a in enumerate(them) for j, b in enumerate(them) if i != j]
        return sum(k(a, b) for a, b in pairs) / len(pairs)

    return apart(xs) + apart(ys) - 2 * sum(k(a, b) for a in xs for b in ys) / (len(xs) * len(ys))


def test_distances_from_real_pictures_when_learned_and_at_the_end(examiner: Examiner, result: dict):
    real = [drawn(name, SAMPLES, seed=HELD_OUT) for name in SUBJECTS]
    then = [far(examiner, real[place], sampled(name, place)) for place, name in enumerate(SUBJECTS)]
    now = [far(examiner, real[place], sampled(name, 2)) for place, name in enumerate(SUBJECTS)]
    assert result["distances_when_learned"] == pytest.approx(then, rel=1e-5)
    assert result["plasticity"] == pytest.approx(sum(then) / 3, rel=1e-5)
    assert result["distance"] == pytest.approx(sum(now) / 3, rel=1e-5)
    assert result["distance_forgotten"] == pytest.approx((now[0] - then[0] + now[1] - then[1]) / 2, rel=1e-5)


def test_drift_and_damage(examiner: Examiner, result: dict):
    """Of all but the last, whose pictures are those of the end."""
    moved = [far(examiner, sampled(name, place), sampled(name, 2)) for place, name in enumerate(SUBJECTS[:2])]
    assert result["drift"] == pytest.approx(sum(moved) / 2, rel=1e-5)
    plain = far(examiner, drawn("gus", SAMPLES, seed=2), drawn("gus", SAMPLES, seed=3))
    assert result["base_distance"] == pytest.approx(plain, rel=1e-5)
    assert result["base_damage"] == pytest.approx(0.9 - 0.7)


def test_copying_compares_training_pictures_with_held_out_ones(examiner: Examiner, result: dict):
    def nearest(picture: Tensor, others: Tensor) -> float:
        return min(float((picture - other).square().sum() ** 0.5) for other in others)

    leads = []
    for name in SUBJECTS:
        ours, training, new = (
            examiner.features(each, name)
            for each in (sampled(name, 2), drawn(name, PICTURES, seed=SEED), drawn(name, SAMPLES, seed=HELD_OUT))
        )
        leads.append(sum(nearest(picture, training) - nearest(picture, new) for picture in ours) / SAMPLES)
    assert result["copying"] == pytest.approx(sum(leads) / 3, rel=1e-4)


def test_recognition_is_counted_at_the_end(result: dict):
    assert result["kept"] == pytest.approx(3 / 6) and result["learned"] == pytest.approx((1 + 1 + 3 / 6) / 3)
    assert result["forgetting"] == pytest.approx(3 / 6)
    assert result["confusion"] == pytest.approx(2 / 6), (
        "being taken for somebody who was never learned is not confusion"
    )
    assert result["traits"] == pytest.approx((0.2 + 0.4 + 0.6) / 3)


def test_norms_and_costs(examiner: Examiner, course: Course, result: dict):
    out, width = next(iter(examiner.base.slots)).shape
    first = 4.0 * (out * width) ** 0.5
    assert result["norms"] == pytest.approx([first, first / 2, first / 4])
    assert result["late_norm"] == pytest.approx(1 / 4)
    assert result["stored"] == out + width + 2 * 5
    assert result["processor_seconds"] == pytest.approx(6.0 / 3)


def test_without_edits_there_are_no_metrics_of_edits(result: dict):
    assert "edited" not in result and "text_alignment" not in result
