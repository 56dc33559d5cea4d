"""The diary of one training run: everything that its panel draws, during training and afterwards."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from torch import Tensor

from ...clora_core.learning.effect import Effect
from ...clora_core.learning.loop import Progress
from ...clora_core.pictures import as_uri, thumbnail
from ...clora_core.report.before_after import BeforeAfter
from .clock import Clock

SENT_EVERY_S = 0.25
POINTS = 100  # per curve; each is the mean of several steps if there are more
FRAMES = 24  # of the film strip, approximately

Status = Literal[  # reading: prompts; kept: from disk
    "learning", "reading", "measuring", "drawing", "comparing", "learned", "kept", "stopped"
]


class Diary:
    """The state of a training run, sent as plain JSON values whenever it changes.

    words: the trigger words, for display. steps: the total. keep: stores the last state that was sent. key: of all
    inputs of the run. resumable: whether another run resumes where this one stops. preview_every, pictures: the steps
    between previews, and the number of pictures at the end.
    """

    def __init__(
        self,
        words: str,
        steps: int,
        send: Callable[[Mapping[str, Any]], None],
        *,
        keep: Callable[[], None] = lambda: None,
        key: str = "",
        resumable: bool = True,
        preview_every: int = 0,
        pictures: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.words, self.steps, self.step, self.key, self.resumable = words, steps, 0, key, resumable
        self.status: Status = "learning"
        self.note = ""
        self.before: list[dict[str, Any]] = []  # the frames of the film strip before its first step
        self.film: list[dict[str, Any]] = []
        self.sheet: list[dict[str, str]] = []
        self.effect: Effect | None = None
        self.clock = clock or Clock()
        self._curves: dict[str, dict[int, list[float]]] = {}
        self._send, self._keep = send, keep
        self._sent_at = self._started_at = time.monotonic()
        self._seconds_before = 0.0
        self._ended_at: float | None = None
        self._first_step = 0
        self._preview_every, self._pictures = preview_every, pictures
        self._part = (0, 0)  # done, of: of the work before or after the steps

    def begin(self, step: int, note: str = "", earlier: Mapping[str, Any] | None = None) -> None:
        """Start or resume the run after this many steps. earlier: the state of the run that is resumed."""
        self._started_at, self._first_step, self.step, self.note = time.monotonic(), step, step, note
        if step and earlier:
            with suppress(KeyError, TypeError, ValueError):  # of a file that somebody changed
                self._restore(earlier)
        self.send()

    def write(self, progress: Progress) -> None:
        """Record one step. The panel gets it a few times a second."""
        self.status, self.step = "learning", progress.step
        self.clock.lap("step")
        point = (progress.step - 1) // self._width
        for name, value in progress.losses.items():
            self._curves.setdefault(name, {}).setdefault(point, []).append(value)
        self._send_sometimes()

    def paste(self, picture: Tensor) -> None:
        """Add a preview, (3, height, width) in [-1, 1]. If there are many, evenly spaced ones stay."""
        if self.status == "learning":
            self.clock.lap("picture")
        distance = self.film[-1]["step"] - self.film[-2]["step"] if len(self.film) > 1 else self.steps
        if self.film and (distance < self.steps / FRAMES or self.film[-1]["step"] == self.step):
            self.film.pop()
        self.film.append({"step": self.step, "picture": as_uri(thumbnail(picture))})
        self.send()

    def paste_before(self, title: Literal["real", "untrained"], picture: Tensor) -> None:
        """Add a picture, (3, height, width) in [-1, 1], at the beginning of the film strip, with a title."""
        self.before.append({"step": 0, "title": title, "picture": as_uri(thumbnail(picture))})
        self.send()

    def compare(self, rows: Sequence[BeforeAfter]) -> None:
        """Set the sheet at the end: exhibits when they were learned, and now."""
        self.sheet = [
            {
                "word": row.word,
                "real": as_uri(row.real) if row.real else "",
                "then": as_uri(thumbnail(row.then)),
                "now": as_uri(thumbnail(row.now)),
            }
            for row in rows
        ]

    def advance(self, status: Status, done: int, of: int) -> None:
        """Record how far the work before the first or after the last step is."""
        begins = status != self.status
        self.status, self._part = status, (done, of)
        self.send() if begins else self._send_sometimes()

    def close(self, status: Status, effect: Effect | None = None, note: str = "") -> None:
        """Record how the run ended."""
        self.status, self.effect, self.note, self._ended_at = status, effect, note, time.monotonic()
        self.send()
        self._keep()

    def replay(self, state: Mapping[str, Any]) -> None:
        """Send the stored state of an earlier run with the same result."""
        self._send({"word": self.words, "steps": self.steps, "step": self.steps, **state, "where": "kept"})
        self._keep()

    def send(self) -> None:
        self._sent_at = time.monotonic()
        self._send(self.state())

    def keep(self) -> None:
        """Store the state as it is now: the run can be resumed from here."""
        self.send()
        self._keep()

    @property
    def seconds(self) -> float:
        """The time of all steps so far, or until the end, including those before an interruption."""
        return self._seconds_before + (self._ended_at or time.monotonic()) - self._started_at

    @property
    def seconds_left(self) -> float | None:
        """An estimate with previews and the work after the last step; None while too little was timed."""
        every = self._preview_every
        previews = self.steps // every - self.step // every if every else 0
        left = {"step": self.steps - self.step, "picture": previews + self._pictures, "measuring": 1}
        return self.clock.seconds(left, self.steps - self._first_step)

    def state(self) -> dict[str, Any]:
        """Plain JSON values. curves: part of the loss → [step, mean] points, at the middle of the averaged steps."""
        left = self.seconds_left if self.status == "learning" else None
        return {
            "key": self.key,
            "word": self.words,
            "steps": self.steps,
            "step": self.step,
            "resumed": self._first_step,
            "resumable": self.resumable,
            "where": self.status,
            "part": list(self._part),
            "note": self.note,
            "seconds": round(self.seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
            "curves": {name: self._points(curve) for name, curve in self._curves.items()},
            "film": [*self.before, *self.film],
            "sheet": list(self.sheet),
            "effect": _finite(vars(self.effect)) if self.effect else {},
        }

    def _send_sometimes(self) -> None:
        if time.monotonic() - self._sent_at > SENT_EVERY_S:
            self.send()

    def _restore(self, earlier: Mapping[str, Any]) -> None:
        """Take over what an earlier run drew up to the step that this one begins with."""
        self._seconds_before = float(earlier["seconds"])
        frames = [frame for frame in earlier["film"] if frame["step"] <= self.step]
        self.before = [frame for frame in frames if "title" in frame]
        self.film = [frame for frame in frames if "title" not in frame]
        for name, points in earlier["curves"].items():
            for middle, mean in points:
                point = math.ceil(middle / self._width) - 1
                end = min((point + 1) * self._width, self.step)
                if end >= middle:
                    self._curves.setdefault(name, {})[point] = [mean] * round(2 * (end - middle) + 1)

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
