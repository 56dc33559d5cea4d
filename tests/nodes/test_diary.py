"""The diary of a learning: curves that are honest means, a film strip that stays short, and plain JSON at any time."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from clora_bare.clora_core.learning.effect import Effect
from clora_bare.nodes.actions.diary import FRAMES, POINTS, Diary


@dataclass
class Done:
    """What a diary reads of the engine's `Progress`."""

    step: int
    losses: dict[str, float] = field(default_factory=dict)


def diary(steps: int) -> tuple[Diary, list[dict]]:
    told: list[dict] = []
    return Diary("<cat>", steps, lambda read: told.append(dict(read))), told


@pytest.mark.parametrize("steps", [1, 7, 100, 101, 250, 1234])
def test_points_are_the_means_of_the_steps_that_they_stand_for(steps: int):
    read, _ = diary(steps)
    values = torch.rand(steps, generator=torch.Generator().manual_seed(0)).tolist()
    for step, value in enumerate(values, 1):
        read.write(Done(step, {"diffusion": value, "self_regularization": 2 * value}))
    curves = read.read()["curves"]
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


def test_a_resumed_learning_goes_on_where_it_was():
    read, _ = diary(10)
    read.begin(6)
    read.write(Done(7, {"diffusion": 1.0}))
    assert read.read()["curves"] == {"diffusion": [(7.0, 1.0)]}
    assert read.seconds_left == pytest.approx(3 * read.seconds)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_the_film_is_short_even_and_ends_with_the_newest(every: int):
    steps = 1000
    read, _ = diary(steps)
    for step in range(every, steps + 1, every):
        read.write(Done(step))
        read.paste(torch.zeros(3, 8, 8))
        assert read.film[-1]["step"] == step
    kept = [frame["step"] for frame in read.film]
    assert kept[0] == every and len(kept) <= FRAMES + 2
    gaps = [later - earlier for earlier, later in pairwise(kept[:-1])]
    assert all(steps / FRAMES <= gap < steps / FRAMES + every for gap in gaps)
    read.paste(torch.ones(3, 8, 8))  # another picture of the same step takes its place
    assert [frame["step"] for frame in read.film] == kept


def test_it_is_json_at_every_moment_also_where_a_number_is_none():
    read, told = diary(3)
    read.begin(0)
    read.write(Done(1, {"diffusion": 0.123456789}))
    read.paste(torch.zeros(3, 8, 8))
    read.close("learned", Effect(0.5, float("nan"), 0.75, {"<dog>": float("inf"), "<cow>": 0.25}, {}))
    assert [entry["where"] for entry in told] == ["learning", "learning", "learned"]
    for entry in told:
        json.dumps(entry, allow_nan=False)
    assert told[-1]["effect"] == {"loss_before": 0.5, "recognised": 0.75, "moved": {"<cow>": 0.25}, "overlap": {}}
    assert told[-1]["curves"]["diffusion"] == [(1.0, 0.1235)]
    assert told[-1]["film"][0]["picture"].startswith("data:image/jpeg;base64,")


def test_what_was_learned_before_is_told_as_it_was_then():
    read, told = diary(3)
    read.keep({"word": "<cat>", "where": "learned", "seconds": 5})
    assert told == [{"word": "<cat>", "steps": 3, "step": 3, "where": "kept", "seconds": 5}]
