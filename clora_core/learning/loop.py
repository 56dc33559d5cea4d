"""The training loop: gather gradients over some batches, update, report. It can be stopped and resumed at any step.

`learn.py` trains concepts with it, `classification/learn.py` tasks of classes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..method.recipe import Recipe
from .optimizer import Optimizer, Trainable
from .processes import ALONE, Processes
from .state import LearningState, NotFiniteError, OutOfMemoryError, StateError, is_out_of_memory
from .stopping import Stopping

Moved = TypeVar("Moved", bound=Trainable)


@dataclass(frozen=True, eq=False)
class Progress(Generic[Moved]):
    """The argument of `report` callbacks, after every update.

    losses: the terms of the loss by name. trained: the current parameters. snapshot: returns a state to resume from.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    trained: Moved
    snapshot: Callable[[], LearningState]

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


def train(
    trained: Moved,
    losses_of: Callable[[int], Mapping[str, Tensor]],
    recipe: Recipe,
    *,
    key: str,
    title: str,
    saving: str,
    device: torch.device,
    computed_in: torch.dtype,
    report: Callable[[Progress[Moved]], None] | None = None,
    resume: LearningState | None = None,
    stopping: Stopping | None = None,
    processes: Processes = ALONE,
) -> float:
    """Update `trained` in place, `recipe.steps` times, or until `stopping` ends it. Returns the last loss.

    losses_of: the number of a batch → the terms of its loss, with gradients. key: of the training that `resume` must
    come from. title: names the training in errors. saving: how to need less memory, for an error. processes: those that
    share the batches of an update. `report` may raise to stop. Raises NotFiniteError if the loss or its gradient is not
    finite, and OutOfMemoryError if a step does not fit into memory, both with the last good state; and StateError for a
    `resume` from another training.
    """
    optimizer = Optimizer(trained, recipe, device, computed_in)
    training = _Training(key, trained, optimizer, stopping)
    if resume:
        training.resume(resume, recipe.steps)
        if stopping:
            stopping.after(resume.step)
    for index in range(len(training.losses), recipe.steps):
        if stopping and stopping.ended:
            break
        losses: dict[str, float] = {}
        try:
            for part in processes.own(recipe.accumulation):
                values = losses_of(index * recipe.accumulation + part)
                optimizer.gather(torch.stack(list(values.values())).sum())
                for name, value in values.items():
                    losses[name] = losses.get(name, 0.0) + value.item() / recipe.accumulation
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = f"Learning '{title}' ran out of memory at step {index + 1}. {saving}"
            raise OutOfMemoryError(message, training.state()) from error
        losses = processes.add(losses)
        processes.add_gradients(trained.parameters().values())
        if not math.isfinite(sum(losses.values())) or not optimizer.update(index):
            raise NotFiniteError(_not_finite(title, index, losses, computed_in), training.state())
        trained.settle()
        training.losses.append(sum(losses.values()))
        if stopping:
            stopping.after(index + 1)
        if report:
            report(Progress(index + 1, recipe.steps, losses, trained, training.state))
    if stopping and stopping.ended:
        stopping.restore()
    return training.losses[-1]


@dataclass(eq=False)
class _Training:
    """The state of a training, which `LearningState` is a copy of."""

    key: str
    trained: Trainable
    optimizer: Optimizer
    stopping: Stopping | None
    losses: list[float] = field(default_factory=list)

    def state(self) -> LearningState:
        tensors = {f"trained.{name}": value.detach().cpu().clone() for name, value in self.trained.parameters().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.memory().items()}
        if self.stopping:
            tensors |= {f"stopping.{name}": value for name, value in self.stopping.memory().items()}
        return LearningState(self.key, len(self.losses), tensors, tuple(self.losses))

    @torch.no_grad()
    def resume(self, state: LearningState, steps: int) -> None:
        if state.key != self.key:
            raise StateError("This saved state belongs to another training (other pictures, museum or settings).")
        if state.step > steps:
            raise StateError(f"This saved state is of step {state.step}, but the recipe has only {steps} steps.")
        self._check(state)
        for name, value in self.trained.parameters().items():
            value.copy_(state.tensors[f"trained.{name}"])
        self.optimizer.remember(_under("optimizer.", state.tensors))
        if self.stopping:
            self.stopping.remember(_under("stopping.", state.tensors))
        self.losses = list(state.losses)

    def _check(self, state: LearningState) -> None:
        """Raise StateError unless the state has all trained tensors, and no unknown ones."""
        trained = {f"trained.{name}": value.shape for name, value in self.trained.parameters().items()}
        shapes = trained | {f"optimizer.{name}": shape for name, shape in self.optimizer.shapes().items()}
        if self.stopping:
            memory = _under("stopping.", state.tensors)
            watched = {f"stopping.{name}": shape for name, shape in self.stopping.shapes(state.step, memory).items()}
            trained, shapes = trained | watched, shapes | watched
        if state.step != len(state.losses):
            raise StateError(f"This saved state is of step {state.step}, but it has {len(state.losses)} losses.")
        if missing := trained.keys() - state.tensors.keys():
            raise StateError(f"This saved state is damaged: it has no '{min(missing)}'.")
        for name, value in state.tensors.items():
            if value.shape != shapes.get(name) or value.dtype != torch.float32 or not value.isfinite().all():
                raise StateError(f"This saved state is damaged: '{name:.100}' is not a tensor of this training.")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _not_finite(word: str, index: int, losses: Mapping[str, float], computed_in: torch.dtype) -> str:
    broken = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
    what = f"the loss ({broken})" if broken else "the gradient"
    exact = "" if computed_in == torch.float32 else "precision fp32 over weights in fp32, or "
    if index:
        advice = f"Try {exact}a lower learning rate."
    else:
        use = f"Use {exact}another file of it" if exact else "Get its file again, or use another one"
        advice = f"This is the first step, so the model itself produces such numbers. {use}."
    return f"Learning '{word}' stopped at step {index + 1}: {what} is not finite. {advice}"
