"""The diary of a training run: curves are exact means, the film strip stays short, the state is always plain JSON."""

import json
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from clora_bare.clora_core.learning.effect import Effect
from clora_bare.clora_core.report.before_after import BeforeAfter
from clora_bare.nodes.actions import clock
from clora_bare.nodes.actions.clock import Clock
from clora_bare.nodes.actions.diary import FRAMES, POINTS, Diary


@dataclass
class Done:
    """The part of the engine's `Progress` that a diary reads."""

    step: int
    losses: dict[str, float] = field(default_factory=dict)


def diary(steps: int) -> tuple[Diary, list[dict]]:
    states: list[dict] = []
    return Diary("<cat>", steps, lambda state: states.append(dict(state))), states


@pytest.mark.parametrize("steps", [1, 7, 100, 101, 250, 1234])
def test_points_are_means_of_their_steps(steps: int):
    run, _ = diary(steps)
    values = torch.rand(steps, generator=torch.Generator().manual_seed(0)).tolist()
    for step, value in enumerate(values, 1):
        run.write(Done(step, {"diffusion": value, "self_regularization": 2 * value}))
    curves = run.state()["curves"]
    width = -(-steps // POINTS)
    chunks = [values[start : start + width] for start in range(0, steps, width)]
    assert len(chunks) <= POINTS
    middles = [start + (len(chunk) + 1) / 2 for start, chunk in zip(range(0, steps, width), chunks, strict=True)]
    assert [step for step, _ in curves["diffusion"]] == middles
    expected = [sum(chunk) / len(chunk) for chunk in chunks]
    assert [value for _, value in curves["diffusion"]] == pytest.approx(expected, rel=1e-3)
    assert [value for _, value in curves["self_regularization"]] == pytest.approx(
        [2 * mean for mean in expected], rel=1e-3
    )


def test_time_stops_at_the_end(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run, states = diary(1)
    now[0] += 5
    run.close("learned")
    now[0] += 5
    assert run.state() == states[-1] and run.seconds == 5


@pytest.mark.parametrize(("steps", "stopped"), [(10, 6), (250, 100), (250, 101), (1234, 555)])
def test_resumed_run_keeps_its_curves_film_and_time(steps: int, stopped: int):
    whole, _ = diary(steps)
    first, _ = diary(steps)
    for step in range(1, stopped + 1):
        for run in (whole, first):
            run.write(Done(step, {"diffusion": 1 / step}))
    first.paste(torch.zeros(3, 8, 8))
    first.close("stopped")
    second, _ = diary(steps)
    second.begin(stopped, earlier=json.loads(json.dumps(first.state())) | {"seconds": 100.0})
    assert second.seconds >= 100 and second.film == first.film and second.state()["resumed"] == stopped
    for step in range(stopped + 1, steps + 1):
        for run in (whole, second):
            run.write(Done(step, {"diffusion": 1 / step}))
    expected, found = whole.state()["curves"]["diffusion"], second.state()["curves"]["diffusion"]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [mean for _, mean in found] == pytest.approx([mean for _, mean in expected], rel=1e-3)


@pytest.mark.parametrize("broken", [{}, {"seconds": 1, "film": 3, "curves": {}}, {"seconds": "x"}])
def test_changed_file_loses_only_the_curves(broken: dict):
    run, _ = diary(10)
    run.begin(6, earlier=broken)
    run.write(Done(7, {"diffusion": 1.0}))
    assert run.state()["curves"] == {"diffusion": [(7.0, 1.0)]}


@dataclass
class Now:
    """A time that passes when it is told to."""

    seconds: float = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_time_left_is_estimated_after_some_steps(monkeypatch: pytest.MonkeyPatch):
    """The first step took a minute, all later ones a second; then come pictures."""
    now = Now()
    monkeypatch.setattr(clock, "time", now)
    timer = Clock({"picture": 2.0, "measuring": 3.0})
    run = Diary("<cat>", 100, lambda state: None, preview_every=10, pictures=4, clock=timer)
    run.begin(0)
    for step in range(1, 10):
        now.seconds += 60 if step == 1 else 1
        run.write(Done(step))
        if step < 6:
            assert run.seconds_left is None and run.state()["seconds_left"] is None
    assert run.seconds_left == pytest.approx(91 + (10 + 4) * 2 + 3)  # a picture's cost is still a guess
    now.seconds += 1
    run.write(Done(10))
    now.seconds += 5
    run.paste(torch.zeros(3, 8, 8))
    assert run.seconds_left == pytest.approx(90 + (9 + 4) * 5 + 3)


def test_work_after_the_last_step_is_reported():
    run, states = diary(3)
    run.advance("drawing", 1, 20)
    run.advance("measuring", 8, 24)
    assert [(state["where"], state["part"]) for state in states] == [("drawing", [1, 20]), ("measuring", [8, 24])]
    assert states[-1]["seconds_left"] is None


@pytest.mark.parametrize("every", [1, 3, 100])
def test_film_is_short_evenly_spaced_and_ends_with_the_newest(every: int):
    steps = 1000
    run, _ = diary(steps)
    for step in range(every, steps + 1, every):
        run.write(Done(step))
        run.paste(torch.zeros(3, 8, 8))
        assert run.film[-1]["step"] == step
    kept = [frame["step"] for frame in run.film]
    assert kept[0] == every and len(kept) <= FRAMES + 2
    gaps = [later - earlier for earlier, later in pairwise(kept[:-1])]
    assert all(steps / FRAMES <= gap < steps / FRAMES + every for gap in gaps)
    run.paste(torch.ones(3, 8, 8))  # replaces the picture of the same step
    assert [frame["step"] for frame in run.film] == kept


def test_state_is_always_valid_json():
    run, states = diary(3)
    run.begin(0)
    run.write(Done(1, {"diffusion": 0.123456789}))
    run.paste(torch.zeros(3, 8, 8))
    run.close("learned", Effect(0.5, float("nan"), {"<dog>": float("inf"), "<cow>": 0.25}, {}))
    assert [entry["where"] for entry in states] == ["learning", "learning", "learned"]
    for entry in states:
        json.dumps(entry, allow_nan=False)
    assert states[-1]["effect"] == {"loss_before": 0.5, "moved": {"<cow>": 0.25}, "overlap": {}}
    assert states[-1]["curves"]["diffusion"] == [(1.0, 0.1235)]
    assert states[-1]["film"][0]["picture"].startswith("data:image/jpeg;base64,")


def test_exhibit_without_a_thumbnail_is_compared():
    run, states = diary(2)
    picture = torch.zeros(3, 8, 8)
    run.compare([BeforeAfter("<cat>", b"", picture, picture)])
    run.close("learned")
    (row,) = json.loads(json.dumps(states[-1]))["sheet"]
    assert row["real"] == "" and row["then"] == row["now"] and row["now"].startswith("data:image/jpeg;base64,")


def test_stored_state_of_an_earlier_run_is_sent():
    run, states = diary(3)
    run.replay({"word": "<cat>", "where": "learned", "seconds": 5})
    assert states == [{"word": "<cat>", "steps": 3, "step": 3, "where": "kept", "seconds": 5}]
