"""What is said of a course in numbers, against loops over its pictures; the pictures are drawn, not sampled."""

import pytest
import torch
from torch import Tensor

from clora_core.bench.marks import HELD_OUT, marks
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.museum.museum import Exhibit, Museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import PICTURES, Course, starter_recipe
from clora_core.starter.exam import Examiner, Sight, drawn
from clora_core.starter.judge import load_judge

SUBJECTS = ("ada", "dex", "finn")
LOOKS, SEED = 6, 4


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner(open_base("starter"), load_judge())


def shown(subject: str, after: int) -> Tensor:
    """What the museum "shows": pictures of its own for every subject and state."""
    return drawn(subject, LOOKS, seed=100 * after + 7)


def taken(subject: str, after: int) -> list[str]:
    """Two of six pictures are taken for another that was learned, one for somebody who was not."""
    others = [name for name in SUBJECTS if name != subject]
    return [subject] * 3 + others + ["gus"] if after == 2 else [subject] * LOOKS


@pytest.fixture(scope="module")
def course(examiner: Examiner) -> Course:
    sights = [
        [
            Sight(
                taken(name, after).count(name) / LOOKS,
                0.1 * after + 0.2 * place,
                taken(name, after),
                shown(name, after),
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
    plain = drawn("gus", LOOKS, seed=3)
    return Course(Museum(examiner.base.fingerprint, exhibits), sights, 0.7, plain, 9.0, 6.0, 1.0)


@pytest.fixture(scope="module")
def found(examiner: Examiner, course: Course) -> dict:
    return marks(examiner, SUBJECTS, course, (0.9, drawn("gus", LOOKS, seed=2)), dressed=0)


def far(examiner: Examiner, x: Tensor, y: Tensor) -> float:
    """MMD² of the judge's features by loops over pairs of pictures."""
    xs, ys = (examiner.features(each, "ada").double() for each in (x, y))

    def k(a: Tensor, b: Tensor) -> float:
        return float((a * b).mean() + 1) ** 3

    def apart(them: Tensor) -> float:
        pairs = [(a, b) for i, a in enumerate(them) for j, b in enumerate(them) if i != j]
        return sum(k(a, b) for a, b in pairs) / len(pairs)

    return apart(xs) + apart(ys) - 2 * sum(k(a, b) for a in xs for b in ys) / (len(xs) * len(ys))


def test_how_far_pictures_are_from_real_ones_when_learned_and_at_the_end(examiner: Examiner, found: dict):
    real = [drawn(name, LOOKS, seed=HELD_OUT) for name in SUBJECTS]
    then = [far(examiner, real[place], shown(name, place)) for place, name in enumerate(SUBJECTS)]
    now = [far(examiner, real[place], shown(name, 2)) for place, name in enumerate(SUBJECTS)]
    assert found["distances_when_learned"] == pytest.approx(then, rel=1e-5)
    assert found["plasticity"] == pytest.approx(sum(then) / 3, rel=1e-5)
    assert found["distance"] == pytest.approx(sum(now) / 3, rel=1e-5)
    assert found["distance_forgotten"] == pytest.approx((now[0] - then[0] + now[1] - then[1]) / 2, rel=1e-5)


def test_how_far_pictures_moved(examiner: Examiner, found: dict):
    """Of all but the last, whose pictures are those of the end."""
    moved = [far(examiner, shown(name, place), shown(name, 2)) for place, name in enumerate(SUBJECTS[:2])]
    assert found["drift"] == pytest.approx(sum(moved) / 2, rel=1e-5)
    plain = far(examiner, drawn("gus", LOOKS, seed=2), drawn("gus", LOOKS, seed=3))
    assert found["base_distance"] == pytest.approx(plain, rel=1e-5)
    assert found["base_damage"] == pytest.approx(0.9 - 0.7)


def test_how_much_nearer_pictures_are_to_new_ones_than_to_those_they_were_taught_with(examiner: Examiner, found: dict):
    def nearest(picture: Tensor, others: Tensor) -> float:
        return min(float((picture - other).square().sum() ** 0.5) for other in others)

    leads = []
    for name in SUBJECTS:
        ours, taught, new = (
            examiner.features(each, name)
            for each in (shown(name, 2), drawn(name, PICTURES, seed=SEED), drawn(name, LOOKS, seed=HELD_OUT))
        )
        leads.append(sum(nearest(picture, taught) - nearest(picture, new) for picture in ours) / LOOKS)
    assert found["copying"] == pytest.approx(sum(leads) / 3, rel=1e-4)


def test_likeness_to_real_pictures(examiner: Examiner, found: dict):
    cosines = []
    for name in SUBJECTS:
        ours, real = (
            examiner.features(each, name).double() for each in (shown(name, 2), drawn(name, LOOKS, seed=HELD_OUT))
        )
        cosines += [float(a @ b / (a.norm() * b.norm())) for a in ours for b in real]
    assert found["image_alignment"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)


def test_what_judges_said_is_counted_at_the_end(found: dict):
    assert found["kept"] == pytest.approx(3 / 6) and found["learned"] == pytest.approx((1 + 1 + 3 / 6) / 3)
    assert found["forgetting"] == pytest.approx(3 / 6)
    assert found["confusion"] == pytest.approx(2 / 6), "being taken for somebody who was never learned is not confusion"
    assert found["traits"] == pytest.approx((0.2 + 0.4 + 0.6) / 3)


def test_what_it_cost(examiner: Examiner, course: Course, found: dict):
    out, width = next(iter(examiner.base.slots)).shape
    first = 4.0 * (out * width) ** 0.5
    assert found["norms"] == pytest.approx([first, first / 2, first / 4])
    assert found["late_norm"] == pytest.approx(1 / 4)
    assert found["stored"] == out + width + 2 * 5
    assert found["processor_seconds"] == pytest.approx(6.0 / 3)


def test_nothing_is_said_of_edits_that_nobody_asked_for(found: dict):
    assert "edited" not in found and "text_alignment" not in found
