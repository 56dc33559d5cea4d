"""The diary of one learning: all that its panel draws, while it goes on and afterwards."""

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
POINTS = 100  # of a curve: each the mean of as many steps as are needed
FRAMES = 24  # of the film strip, about

Where = Literal["learning", "measuring", "learned", "kept", "stopped"]  # kept: found on disk


class Diary:
    """What is known of a learning so far, sent as plain JSON values whenever there is something new.

    word: what is learned. steps: how many in all.
    """

    def __init__(self, word: str, steps: int, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.word, self.steps, self.step = word, steps, 0
        self.where: Where = "learning"
        self.note = ""
        self.seconds = 0.0
        self.film: list[dict[str, Any]] = []
        self.effect: Effect | None = None
        self._curves: dict[str, dict[int, list[float]]] = {}
        self._send = send
        self._sent = self._begun = time.monotonic()
        self._first = 0

    def begin(self, step: int, note: str = "") -> None:
        """So many steps were done before an interruption; the next one follows."""
        self._begun, self._first, self.step, self.note = time.monotonic(), step, step, note
        self.send()

    def write(self, progress: Progress) -> None:
        """One more step is done. The panel gets it a few times a second."""
        self.step, self.seconds = progress.step, time.monotonic() - self._begun
        place = (progress.step - 1) // self._width
        for name, value in progress.losses.items():
            self._curves.setdefault(name, {}).setdefault(place, []).append(value)
        if time.monotonic() - self._sent > SENT_EVERY_S:
            self.send()

    def paste(self, picture: Tensor) -> None:
        """What the word shows now: (3, height, width) in [-1, 1]. Of many pictures, evenly distant ones are kept."""
        distance = self.film[-1]["step"] - self.film[-2]["step"] if len(self.film) > 1 else self.steps
        if self.film and (distance < self.steps / FRAMES or self.film[-1]["step"] == self.step):
            self.film.pop()
        encoded = base64.b64encode(thumbnail(picture)).decode()
        self.film.append({"step": self.step, "picture": f"data:image/jpeg;base64,{encoded}"})
        self.send()

    def close(self, where: Where, effect: Effect | None = None, note: str = "") -> None:
        """How the learning ended."""
        self.where, self.effect, self.note = where, effect, note
        self.send()

    def keep(self, read: Mapping[str, Any]) -> None:
        """It was all learned before: send what was read then."""
        self._send({"word": self.word, "steps": self.steps, "step": self.steps, **read, "where": "kept"})

    def send(self) -> None:
        """Send it now."""
        self._sent = time.monotonic()
        self._send(self.read())

    @property
    def seconds_left(self) -> float:
        """As long as the steps so far took, each."""
        return self.seconds / max(1, self.step - self._first) * (self.steps - self.step)

    def read(self) -> dict[str, Any]:
        """Plain JSON values. curves: a part of the loss → [step, mean] points, the step being the middle of some."""
        return {
            "word": self.word,
            "steps": self.steps,
            "step": self.step,
            "where": self.where,
            "note": self.note,
            "seconds": round(self.seconds, 1),
            "seconds_left": round(self.seconds_left, 1),
            "curves": {name: self._points(curve) for name, curve in self._curves.items()},
            "film": list(self.film),
            "effect": _finite(vars(self.effect)) if self.effect else {},
        }

    @property
    def _width(self) -> int:
        return math.ceil(self.steps / POINTS)

    def _points(self, curve: Mapping[int, Sequence[float]]) -> list[tuple[float, float]]:
        ends = [min((place + 1) * self._width, self.step) for place in curve]
        return [
            (end - (len(values) - 1) / 2, float(f"{sum(values) / len(values):.4g}"))
            for end, values in zip(ends, curve.values(), strict=True)
        ]


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is no finite number, which JSON does not know."""
    kept = {name: _finite(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in kept.items() if isinstance(value, dict) or math.isfinite(value)}
