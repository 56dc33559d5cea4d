"""The diary of a training run: curves are exact means, the film strip stays short, the state is always plain JSON."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from clora_bare.clora_core.learning.effect import Effect
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
def test_points_are_the_means_of_the_steps_that_they_stand_for(steps: int):
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


def test_a_resumed_run_continues_its_curves():
    run, _ = diary(10)
    run.begin(6)
    run.write(Done(7, {"diffusion": 1.0}))
    assert run.state()["curves"] == {"diffusion": [(7.0, 1.0)]}


def test_the_time_left_is_told_after_some_steps():
    run, _ = diary(100)
    run.begin(6)
    for step in range(7, 11):
        run.write(Done(step))
        assert run.seconds_left is None and run.state()["seconds_left"] is None
    run.write(Done(11))
    assert run.seconds_left == pytest.approx(89 / 5 * run.seconds)
    short, _ = diary(2)
    short.begin(0)
    short.write(Done(1))
    short.write(Done(2))
    assert short.seconds_left == 0


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_film_is_short_even_and_ends_with_the_newest(every: int):
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


def test_its_state_is_valid_json_at_every_moment():
    run, states = diary(3)
    run.begin(0)
    run.write(Done(1, {"diffusion": 0.123456789}))
    run.paste(torch.zeros(3, 8, 8))
    run.close("learned", Effect(0.5, float("nan"), 0.75, {"<dog>": float("inf"), "<cow>": 0.25}, {}))
    assert [entry["where"] for entry in states] == ["learning", "learning", "learned"]
    for entry in states:
        json.dumps(entry, allow_nan=False)
    assert states[-1]["effect"] == {"loss_before": 0.5, "recognised": 0.75, "moved": {"<cow>": 0.25}, "overlap": {}}
    assert states[-1]["curves"]["diffusion"] == [(1.0, 0.1235)]
    assert states[-1]["film"][0]["picture"].startswith("data:image/jpeg;base64,")


def test_the_stored_state_of_an_earlier_run_is_sent():
    run, states = diary(3)
    run.replay({"word": "<cat>", "where": "learned", "seconds": 5})
    assert states == [{"word": "<cat>", "steps": 3, "step": 3, "where": "kept", "seconds": 5}]
