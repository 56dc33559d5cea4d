"""Stop when the concept is learned: when the error on a held-out picture no longer falls.

Our own method. The error is always measured with the same noise, which training does not draw, so it falls while the
concept is learned, and rises when the model begins to copy the pictures. Some measurements are averaged, as the error
of a training at a constant rate goes up and down. The result is what was learned at the last one whose average was
clearly lower than all before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from .optimizer import Trainable

EVERY = 25  # steps between two measurements
AVERAGED = 4  # measurements
PATIENCE = 12  # measurements without a gain that end the training
GAIN = 0.01  # how much lower an error has to be
LEAST_PICTURES = 5  # different ones, for one to be left out
MEMORY, BEST = "measured", "best."  # names in a saved state


@dataclass(frozen=True)
class Measured:
    """own: the mean squared error on pictures that are trained on; left_out: on the one that is not, or the same."""

    step: int
    own: float
    left_out: float


class Stopping:
    """Decides when to stop, and keeps the parameters of the best measurement. measure: the errors (own, left out)."""

    def __init__(self, trained: Trainable, measure: Callable[[], tuple[float, float]], *, leaves_out: bool) -> None:
        self.measurements: list[Measured] = []
        self._trained, self._measure, self._leaves_out = trained, measure, leaves_out
        self._best: dict[str, Tensor] = {}

    def after(self, step: int) -> None:
        """Measure, if it is time to and not done yet."""
        if not step or step % EVERY or len(self.measurements) == step // EVERY:
            return
        own, left_out = torch.tensor(self._measure()).tolist()  # as a saved state holds them
        self.measurements.append(Measured(step, own, left_out))
        if self.best.step == step:
            self._best = {name: value.detach().cpu().clone() for name, value in self._trained.parameters().items()}

    @property
    def averages(self) -> list[Measured]:
        """For each measurement, the mean of the last few."""
        windows = [self.measurements[max(0, end - AVERAGED) : end] for end in range(1, len(self.measurements) + 1)]
        return [
            Measured(last[-1].step, fmean(one.own for one in last), fmean(one.left_out for one in last))
            for last in windows
        ]

    @property
    def best(self) -> Measured:
        """The last average that was clearly lower than all before it."""
        best, *others = self.averages
        for other in others:
            if other.left_out < (1 - GAIN) * best.left_out:
                best = other
        return best

    @property
    def ended(self) -> bool:
        return bool(self.measurements) and self.measurements[-1].step - self.best.step >= PATIENCE * EVERY

    @torch.no_grad()
    def restore(self) -> None:
        """Set the parameters to those of the best measurement."""
        for name, value in self._trained.parameters().items():
            value.copy_(self._best[name])

    def verdict(self, steps: int) -> str:
        """What was decided, as a sentence. steps: the most that were allowed."""
        where = "on the picture left out of training" if self._leaves_out else "on its pictures, with new noise"
        if not self.ended:
            return (
                f"Not stopped before step {steps}: the error {where} may still fall. More steps may help; with them, "
                "training starts over."
            )
        best, last = self.best, self.averages[-1]
        rose, fell = last.left_out / best.left_out - 1, 1 - last.own / best.own
        if self._leaves_out and rose > GAIN and fell > 0:
            return (
                f"Learned at step {best.step}. Then the model began to copy the pictures: up to step {last.step}, the "
                f"error {where} rose by {rose:.0%}, and on the others it fell by {fell:.0%}. Later steps are not kept."
            )
        return f"Learned at step {best.step}: up to step {last.step}, the error {where} fell by less than {GAIN:.0%}."

    def memory(self) -> dict[str, Tensor]:
        """For a saved state."""
        if not self.measurements:
            return {}
        rows = [[one.step, one.own, one.left_out] for one in self.measurements]
        return {MEMORY: torch.tensor(rows), **{f"{BEST}{name}": value for name, value in self._best.items()}}

    def shapes(self, step: int, memory: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """What `memory` holds after this many steps. It lacks the last measurement if that was interrupted."""
        count = step // EVERY
        rows = memory[MEMORY].shape[:1] if MEMORY in memory else (0,)
        count -= rows == (count - 1,)
        own = {f"{BEST}{name}": value.shape for name, value in self._trained.parameters().items()}
        return {MEMORY: torch.Size([count, 3]), **own} if count else {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self.measurements = (
            [Measured(int(step), own, out) for step, own, out in memory[MEMORY].tolist()] if memory else []
        )
        self._best = {name.removeprefix(BEST): value for name, value in memory.items() if name.startswith(BEST)}
