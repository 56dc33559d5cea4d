"""How much time a training run will still take, from the time that its parts took so far."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

STEPS_FOR_AN_ESTIMATE = 5  # after the first, which is slow: it loads and compiles
PICTURE_FORWARDS = 40  # of sampling a picture: twenty steps, each with the prompt and without


@dataclass
class Clock:
    """Time in seconds. costs: kind of work → its cost in training steps, used until one has been timed."""

    costs: Mapping[str, float] = field(default_factory=dict)
    _totals: dict[str, tuple[int, float]] = field(default_factory=dict)
    _lap_at: float = field(default_factory=time.monotonic)
    _laps: int = 0

    def lap(self, kind: str) -> None:
        """Count the time since the last lap for this kind of work. The very first lap is left out."""
        now = time.monotonic()
        if self._laps:
            done, seconds = self._totals.get(kind, (0, 0.0))
            self._totals[kind] = done + 1, seconds + now - self._lap_at
        self._lap_at, self._laps = now, self._laps + 1

    def seconds(self, left: Mapping[str, int], steps: int) -> float | None:
        """An estimate for what is left, kind → count; None while too little was timed. steps: of the whole run."""
        measured, _ = self._totals.get("step", (0, 0.0))
        if measured < min(STEPS_FOR_AN_ESTIMATE, steps - 1):
            return None
        return sum(count * self._each(kind) for kind, count in left.items())

    def _each(self, kind: str) -> float:
        done, seconds = self._totals.get(kind, (0, 0.0))
        if done:
            return seconds / done
        return 0.0 if kind == "step" else self.costs.get(kind, 0.0) * self._each("step")


def costs(step_pictures: int, passes: int) -> dict[str, float]:
    """The costs of sampling a picture, and of measuring the effect in `passes` passes of a picture, in training steps.

    A step goes forward and, for about twice the cost, backward.
    """
    forwards = 3 * step_pictures
    return {"picture": PICTURE_FORWARDS / forwards, "measuring": passes / forwards}
