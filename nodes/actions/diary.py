"""The diary of one training run: everything that its panel draws, during training and afterwards."""

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ...clora_core.learning.effect import Effect
from ...clora_core.learning.learn import Progress
from ...clora_core.pictures import thumbnail

SENT_EVERY_S = 0.25
POINTS = 100  # per curve; each is the mean of several steps if there are more
STEPS_FOR_AN_ESTIMATE = 5  # the first steps are slow
FRAMES = 24  # of the film strip, approximately

Status = Literal["learning", "measuring", "learned", "kept", "stopped"]  # kept: loaded from disk


class Diary:
    """The state of a training run, sent as plain JSON values whenever it changes.

    words: the trigger words, for display. steps: the total.
    """

    def __init__(self, words: str, steps: int, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.words, self.steps, self.step = words, steps, 0
        self.status: Status = "learning"
        self.note = ""
        self.seconds = 0.0
        self.film: list[dict[str, Any]] = []
        self.effect: Effect | None = None
        self._curves: dict[str, dict[int, list[float]]] = {}
        self._send = send
        self._sent_at = self._started_at = time.monotonic()
        self._first_step = 0

    def begin(self, step: int, note: str = "") -> None:
        """Start or resume the run after this many steps."""
        self._started_at, self._first_step, self.step, self.note = time.monotonic(), step, step, note
        self.send()

    def write(self, progress: Progress) -> None:
        """Record one step. The panel gets it a few times a second."""
        self.step, self.seconds = progress.step, time.monotonic() - self._started_at
        point = (progress.step - 1) // self._width
        for name, value in progress.losses.items():
            self._curves.setdefault(name, {}).setdefault(point, []).append(value)
        if time.monotonic() - self._sent_at > SENT_EVERY_S:
            self.send()

    def paste(self, picture: Tensor) -> None:
        """Add a preview, (3, height, width) in [-1, 1]. If there are many, evenly spaced ones stay."""
        distance = self.film[-1]["step"] - self.film[-2]["step"] if len(self.film) > 1 else self.steps
        if self.film and (distance < self.steps / FRAMES or self.film[-1]["step"] == self.step):
            self.film.pop()
        encoded = base64.b64encode(thumbnail(picture)).decode()
        self.film.append({"step": self.step, "picture": f"data:image/jpeg;base64,{encoded}"})
        self.send()

    def close(self, status: Status, effect: Effect | None = None, note: str = "") -> None:
        """Record how the run ended."""
        self.status, self.effect, self.note = status, effect, note
        self.send()

    def replay(self, state: Mapping[str, Any]) -> None:
        """Send the stored state of an earlier run with the same result."""
        self._send({"word": self.words, "steps": self.steps, "step": self.steps, **state, "where": "kept"})

    def send(self) -> None:
        self._sent_at = time.monotonic()
        self._send(self.state())

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the mean time per step so far; None after too few steps for one."""
        done = self.step - self._first_step
        if done < min(STEPS_FOR_AN_ESTIMATE, self.steps - self._first_step):
            return None
        return self.seconds / max(1, done) * (self.steps - self.step)

    def state(self) -> dict[str, Any]:
        """Plain JSON values. curves: part of the loss → [step, mean] points, at the middle of the averaged steps."""
        return {
            "word": self.words,
            "steps": self.steps,
            "step": self.step,
            "where": self.status,
            "note": self.note,
            "seconds": round(self.seconds, 1),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "curves": {name: self._points(curve) for name, curve in self._curves.items()},
            "film": list(self.film),
            "effect": _finite(vars(self.effect)) if self.effect else {},
        }

    @property
    def _width(self) -> int:
        """Steps per point."""
        return math.ceil(self.steps / POINTS)

    def _points(self, curve: Mapping[int, Sequence[float]]) -> list[tuple[float, float]]:
        ends = [min((point + 1) * self._width, self.step) for point in curve]
        return [
            (end - (len(values) - 1) / 2, float(f"{sum(values) / len(values):.4g}"))
            for end, values in zip(ends, curve.values(), strict=True)
        ]


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without NaN and infinity, which JSON cannot represent."""
    nested = {name: _finite(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in nested.items() if isinstance(value, dict) or math.isfinite(value)}
