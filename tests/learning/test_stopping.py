"""Stopping when a concept is learned: the rule on known errors, and in a training that is resumed."""

from dataclasses import replace

import pytest
import torch

from clora_core.errors import Cancelled
from clora_core.learning import stopping
from clora_core.learning.learn import Learning, Progress
from clora_core.learning.lesson import Lesson
from clora_core.learning.state import LearningState, StateError
from clora_core.learning.stopping import AVERAGED, EVERY, PATIENCE, Stopping
from clora_core.model.base import Base
from clora_core.museum.museum import STOPPED, Exhibit, Museum
from clora_core.pictures import in_memory
from tests.small import short, small_concept


class Number:
    """One parameter, whose value is the step."""

    def __init__(self) -> None:
        self.value = torch.zeros(1)

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"step": self.value}

    def settle(self) -> None:
        pass


def after(left_out: list[float], own: list[float] | None = None, *, leaves_out: bool = True) -> tuple[Stopping, Number]:
    """A training with these errors, one per measurement."""
    pairs = iter(zip(own or left_out, left_out, strict=True))
    trained = Number()
    watched = Stopping(trained, lambda: next(pairs), leaves_out=leaves_out)
    for step in range(1, EVERY * len(left_out) + 1):
        trained.value.fill_(step)
        watched.after(step)
    return watched, trained


def test_training_ends_when_the_error_stops_falling_clearly():
    falling = [0.5, 0.4, 0.3, 0.2, 0.1, *[0.05] * AVERAGED]
    assert not after(falling)[0].ended
    flat = [*falling, *[0.0499] * (PATIENCE - 1)]
    assert not after(flat)[0].ended and after([*flat, 0.0499])[0].ended
    late = [*flat, 0.04, *[0.05] * PATIENCE]
    watched, trained = after(late)
    assert watched.ended and watched.best.step == EVERY * (len(flat) + 1)
    watched.restore()
    assert trained.value.item() == watched.best.step


def test_a_single_low_error_does_not_count_as_progress():
    assert after([*[0.1] * AVERAGED, 0.097, 0.1])[0].best.step == EVERY


LAST = EVERY * (PATIENCE + 1)


@pytest.mark.parametrize(
    ("left_out", "own", "leaves_out", "said"),
    [
        (
            [0.2, *[0.25] * PATIENCE],
            [0.2, *[0.1] * PATIENCE],
            True,
            f"began to copy the pictures: up to step {LAST}, the error on the",
        ),
        (
            [0.2, *[0.25] * PATIENCE],
            [0.2, *[0.3] * PATIENCE],
            True,
            f"Learned at step {EVERY}: up to step {LAST}, the error on the",
        ),
        (
            [0.2, *[0.25] * PATIENCE],
            [0.2, *[0.1] * PATIENCE],
            False,
            f"Learned at step {EVERY}: up to step {LAST}, the error on its",
        ),
        ([0.2, 0.1], [0.2, 0.1], True, "Not stopped before step 50"),
    ],
)
def test_the_verdict_gives_step_and_reason(left_out: list[float], own: list[float], leaves_out: bool, said: str):
    assert said in after(left_out, own, leaves_out=leaves_out)[0].verdict(50)


WATCHED = replace(short(steps=8), stop_when_learned=True, schedule="constant")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure at every step, and give up after two."""
    monkeypatch.setattr(stopping, "EVERY", 1)
    monkeypatch.setattr(stopping, "PATIENCE", 2)
    monkeypatch.setattr(stopping, "GAIN", 0.9)


def learning(base: Base, recipe=WATCHED) -> Learning:
    return Learning(base, Museum(base.fingerprint), (small_concept(count=6),), recipe)


def test_a_stopped_training_returns_its_best_state(base: Base, quick: None):
    kept: list[tuple[Exhibit, ...]] = []
    watched = learning(base)
    (exhibit,) = watched.run(report=lambda progress: kept.append(watched.exhibits_at(progress)))
    assert len(kept) == 3 and exhibit.same_as(kept[0][0]) and not exhibit.same_as(kept[2][0])
    assert str(exhibit.facts[STOPPED]).startswith("Learned at step 1")


def test_resuming_at_any_step_stops_at_the_same_point(base: Base, quick: None):
    states: list[LearningState] = []
    (whole,) = learning(base).run(report=lambda progress: states.append(progress.snapshot()))
    for state in states:
        (resumed,) = learning(base).run(resume=state)
        assert resumed.same_as(whole) and resumed.facts == whole.facts
    tensors = {name: value for name, value in states[-1].tensors.items() if name != "stopping.measured"}
    with pytest.raises(StateError, match=r"has no .stopping\.measured."):
        learning(base).run(resume=replace(states[-1], tensors=tensors))


@pytest.mark.parametrize("interrupted", [2, 3])
def test_training_that_is_cancelled_while_it_measures_can_be_resumed(
    base: Base, quick: None, monkeypatch: pytest.MonkeyPatch, interrupted: int
):
    """The state of that moment has the step, but not its measurement."""
    (whole,) = learning(base).run()
    measured, seen, stops = Lesson.reference_loss, [], [2 * interrupted]  # of the pictures, and of the one left out

    def measure(lesson: Lesson, *tokens: object, **more: object) -> float:
        stops[0] -= 1
        if stops[0] == 0:
            raise Cancelled("stopped")
        return measured(lesson, *tokens, **more)  # type: ignore[arg-type]

    def report(progress: Progress) -> None:
        seen.append(progress)

    monkeypatch.setattr(Lesson, "reference_loss", measure)
    with pytest.raises(Cancelled):
        learning(base).run(report=report)
    state = seen[-1].snapshot()
    assert state.step == interrupted
    (resumed,) = learning(base).run(resume=state)
    assert resumed.same_as(whole) and resumed.facts == whole.facts


def test_without_stopping_no_fact_is_added_and_the_key_differs(base: Base):
    plain = replace(WATCHED, stop_when_learned=False)
    (one,), (other,) = learning(base, plain).run(), learning(base, replace(plain)).run()
    assert one.same_as(other) and STOPPED not in one.facts
    assert learning(base, plain).key != learning(base).key and plain.open_ended and not WATCHED.open_ended


def test_one_of_at_least_five_pictures_is_held_out_with_all_its_copies(base: Base):
    concept = small_concept(count=6)
    lesson = Lesson.prepared(base, concept, WATCHED)
    assert [bucket.places.tolist() for bucket in lesson.buckets] == [[0, 1, 2, 3, 4]]
    assert lesson.left_out is not None and lesson.left_out.places.tolist() == [5]
    doubled = replace(concept, pictures=(concept.pictures[5], *concept.pictures))
    lesson = Lesson.prepared(base, doubled, WATCHED)
    assert [bucket.places.tolist() for bucket in lesson.buckets] == [[1, 2, 3, 4, 5]]
    few = replace(concept, pictures=(*concept.pictures[:4], *concept.pictures[:4]))
    assert Lesson.prepared(base, few, WATCHED).left_out is None
    wide = replace(concept, pictures=(*concept.pictures, *in_memory(torch.zeros(2, 3, 64, 128))))
    assert Lesson.prepared(base, wide, WATCHED).left_out.places.tolist() == [5]  # type: ignore[union-attr]
    assert [len(bucket.places) for bucket in Lesson.prepared(base, wide, WATCHED).buckets] == [5, 2]


def test_cancelling_stops_the_training(base: Base, quick: None):
    def stop(progress: Progress) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        learning(base).run(report=stop)
