"""The methods of `bench classification`: those of `classify learn`, and published baselines.

A method is a class that learns one task; a few keep data between tasks in `memory`. Their weights were tuned; see
docs/classes.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classification.heads import logits
from ..classification.learn import ClassPictures, TaskLearning, TaskTrained
from ..classification.museum import Task, TaskMuseum
from ..classification.recipe import METHODS, TaskRecipe
from ..classification.vision import Vision, layer_path
from ..method.regularizers import ContextPreservation, Regularizer, SelfRegularization
from ..method.step import AnySetting
from ..model.attach import attached
from ..model.low_rank import LowRank
from ..pictures import as_floats

TEMPERATURE = 2.0  # of learning without forgetting, arXiv:1606.09282
UNCLIPPED = 1e12  # a norm that no gradient has
FISHER_BATCH = 16  # pictures of one gradient; its square is averaged over all batches


@dataclass(eq=False)
class Memory:
    """What a baseline keeps between tasks, besides the museum."""

    fisher: dict[Any, Tensor] = field(default_factory=dict)
    anchors: dict[str, Tensor] = field(default_factory=dict)
    spaces: dict[str, Tensor] = field(default_factory=dict)
    tasks: int = 0


@dataclass(frozen=True, eq=False)
class Baseline(TaskLearning):
    """A learning with a tuned weight and a memory. tasks: the total number of tasks."""

    weight: float = 0.0
    memory: Memory = field(default_factory=Memory)
    tasks: int = 1

    def finish(self, task: Task) -> None:
        """Called after a task was learned, to update the memory."""


class Distilled(Baseline):
    """Learning without forgetting: the old rows' outputs for the new pictures stay the same. Li and Hoiem 2016.

    L = weight · T² KL(softmax(old before / T) ‖ softmax(old now / T))          T = 2
    """

    def terms(self, setting: AnySetting, features: Tensor) -> dict[str, Callable[[Any], Tensor]]:
        if not self.museum.tasks:
            return {}
        rows = torch.cat([task.rows for task in self.museum.tasks]).to(self.base.device)
        targets = (logits(features.to(self.base.device), rows) / TEMPERATURE).softmax(1)

        def term(step: Any) -> Tensor:
            outputs = (logits(step.features, rows) / TEMPERATURE).log_softmax(1)
            divergence = F.kl_div(outputs, targets[step.chosen], reduction="batchmean")
            return self.weight * TEMPERATURE**2 * divergence

        return {"distillation": term}


class ElasticDeltas(Baseline):
    """EWC-LoRA, arXiv:2602.17559: weight / 2 · Σ Ω ∘ (up·down)², Ω the summed Fisher information of earlier tasks."""

    def terms(self, setting: AnySetting, features: Tensor) -> dict[str, Callable[[Any], Tensor]]:
        return _elastic(self, lambda step, projection: step.deltas[projection].up @ step.deltas[projection].down)

    def finish(self, task: Task) -> None:
        museum = self.museum.with_task(task)
        weights = {projection: torch.zeros(projection.shape) for projection in self.base.slots}
        zeros = {projection: value.to(self.base.device).requires_grad_() for projection, value in weights.items()}
        with torch.enable_grad(), self.base.merged(museum.dense()), attached(self.base, zeros):
            _add_fisher(self, task, zeros, self.memory.fisher)


class InputSpaces(Baseline):
    """InfLoRA, arXiv:2404.00228: `down` is fixed to the new task's inputs, projected out of the old tasks' space.

    Old spaces grow by gradient projection memory until they contain the share ε of the inputs' energy. ε goes from
    `weight` at the first task to 1, as in the paper. Its dual form saves memory and gives the same space.
    """

    def start(self, features: Tensor) -> TaskTrained:
        trained = super().start(features)
        _, moments = self.read()
        deltas = {}
        for projection, delta in trained.deltas.items():
            layer = layer_path(projection)
            moment = _outside(moments[layer].double(), self._space(layer, projection.shape[1]))
            directions = torch.linalg.eigh(moment)[1][:, -self.loop.rank :].T.float()
            deltas[projection] = LowRank(delta.up, (directions / 3**0.5).to(self.base.device).contiguous())
        return replace(trained, deltas=deltas)

    def finish(self, task: Task) -> None:
        share = self.weight + (1 - self.weight) * self.memory.tasks / max(1, self.tasks)
        for layer, moment in task.inputs.items():
            moment = moment.double()
            old = self._space(layer, len(moment))
            values, vectors = torch.linalg.eigh(_outside(moment, old))
            contained = (moment.trace() - values.sum()) / moment.trace()
            count = 0
            while contained < share and old.shape[1] + count < len(moment) - self.loop.rank:
                count += 1
                contained = contained + values[-count] / moment.trace()
            self.memory.spaces[layer] = torch.cat([old, vectors[:, len(moment) - count :]], dim=1)
        self.memory.tasks += 1

    def _space(self, layer: str, width: int) -> Tensor:
        return self.memory.spaces.get(layer, torch.zeros(width, 0, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class WholeTrained(TaskTrained):
    """All weights of the network, and the rows."""

    network: nn.Module = field(default_factory=nn.Module)

    def parameters(self) -> dict[str, Tensor]:
        return {"head.rows": self.rows, **dict(self.network.named_parameters())}


class WholeNetwork(Baseline):
    """Fine-tuning of all weights; with a weight, EWC (arXiv:1612.00796): weight / 2 · Σ Ω ∘ (θ - θ_before)²."""

    @property
    def adapts(self) -> bool:
        return True

    def start(self, features: Tensor) -> TaskTrained:
        self.base.network.requires_grad_(True)
        for name, value in self.base.network.named_parameters():
            self.memory.anchors[name] = value.detach().clone()
        return WholeTrained({}, self.first_rows(features), self.base.network)

    def terms(self, setting: AnySetting, features: Tensor) -> dict[str, Callable[[Any], Tensor]]:
        now = dict(self.base.network.named_parameters())
        return _elastic(self, lambda step, name: now[name] - self.memory.anchors[name])

    def finish(self, task: Task) -> None:
        if self.weight:
            with torch.enable_grad():
                _add_fisher(self, task, dict(self.base.network.named_parameters()), self.memory.fisher)
        self.base.network.requires_grad_(False)


class DecayedDeltas(Baseline):
    """C-LoRA's penalty with 1 instead of past: weight · Σ ‖up·down‖²_F, after the first task, as plain decay."""

    def terms(self, setting: AnySetting, features: Tensor) -> dict[str, Callable[[Any], Tensor]]:
        def term(step: Any) -> Tensor:
            squares = [(delta.up @ delta.down).square().sum() for delta in step.deltas.values()]
            return self.weight * torch.stack(squares).sum()

        return {"decay": term} if self.museum.tasks else {}


@dataclass(frozen=True)
class Method:
    """How a method learns a task, the tried values of its number, and the best. joint: all classes are one task."""

    learning: type[TaskLearning]
    recipe: Callable[[float], TaskRecipe]
    tried: tuple[float, ...]
    weight: float
    joint: bool = False


def _regularized(name: str, kind: Callable[[float], Regularizer]) -> Callable[[float], TaskRecipe]:
    own = METHODS[name]
    return lambda weight: replace(own, learning=replace(own.learning, regularizers=(kind(weight),)))


def _at_rate(name: str, rate: str = "learning_rate") -> Callable[[float], TaskRecipe]:
    return lambda weight: replace(METHODS[name], learning=replace(METHODS[name].learning, **{rate: weight}))


def _fixed(rate: float) -> Callable[[float], TaskRecipe]:
    return lambda weight: _at_rate("sequential")(rate)


def _elastic_at(rate: float) -> Callable[[float], TaskRecipe]:
    """Without clipping, as published: next to such a penalty, clipping the whole gradient would hold the head back."""
    whole = _fixed(rate)(0)
    return lambda weight: replace(whole, learning=replace(whole.learning, clip_norm=UNCLIPPED))


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
COMPARED: dict[str, Method] = {
    "frozen": Method(TaskLearning, _at_rate("frozen", "token_learning_rate"), (1e-3, 3e-3, 1e-2, 3e-2), 3e-3),
    "first-task": Method(TaskLearning, _at_rate("first-task"), RATES, 3e-4),
    "sequential": Method(TaskLearning, _at_rate("sequential"), RATES, 3e-4),
    "fine-tuning": Method(WholeNetwork, _at_rate("sequential"), (1e-5, 3e-5, 1e-4, 3e-4), 1e-5),
    "ewc": Method(WholeNetwork, _elastic_at(3e-5), (1e6, 1e7, 1e8, 1e9), 1e9),
    "ewc-lora": Method(ElasticDeltas, _elastic_at(1e-3), (1e6, 1e7, 1e8, 1e9), 1e8),
    "lwf": Method(Distilled, _fixed(1e-3), (0.3, 1.0, 3.0, 10.0), 10.0),
    "inflora": Method(InputSpaces, _fixed(1e-3), (0.9, 0.95, 0.98, 0.99), 0.95),
    "weight-decay": Method(DecayedDeltas, _fixed(1e-3), (1e-3, 1e-2, 1e-1, 1.0), 1.0),
    "c-lora": Method(TaskLearning, _regularized("c-lora", SelfRegularization), (1.0, 10.0, 100.0, 1000.0), 10.0),
    "preservation": Method(
        TaskLearning, _regularized("preservation", ContextPreservation), (5.0, 50.0, 500.0, 5000.0), 5000.0
    ),
    "joint": Method(TaskLearning, _at_rate("sequential"), RATES, 3e-3, joint=True),
}


def learn_task(
    method: Method, weight: float, base: Vision, museum: TaskMuseum, task: ClassPictures, memory: Memory, **changes: Any
) -> Task:
    """The museum's next task. changes: to the recipe, and `tasks`, the total number of tasks."""
    tasks = changes.pop("tasks", 1)
    recipe = replace(method.recipe(weight), **changes)
    if not issubclass(method.learning, Baseline):
        return method.learning(base, museum, task, recipe).run()
    learning = method.learning(base, museum, task, recipe, weight=weight, memory=memory, tasks=tasks)
    result = learning.run()
    learning.finish(result)
    return result


def _elastic(learning: Baseline, change: Callable[[Any, Any], Tensor]) -> dict[str, Callable[[Any], Tensor]]:
    """weight / 2 · Σ Ω ∘ change², where there is Fisher information Ω of earlier tasks."""
    fisher = learning.memory.fisher

    def term(step: Any) -> Tensor:
        total = step.zero()
        for name, omega in fisher.items():
            total = total + (omega * change(step, name).square()).sum()
        return learning.weight / 2 * total

    return {"elastic_weights": term} if learning.weight and fisher else {}


def _outside(moment: Tensor, space: Tensor) -> Tensor:
    """The second moment, projected out of the space with these orthonormal columns."""
    projector = torch.eye(len(moment), dtype=moment.dtype) - space @ space.T
    return projector @ moment @ projector


def _add_fisher(learning: TaskLearning, task: Task, weights: dict[Any, Tensor], fisher: dict[Any, Tensor]) -> None:
    """Add the mean squared gradient of the classification loss by each weight, over batches of the task's pictures."""
    data, device = learning.task, learning.base.device
    rows = task.rows.to(device)
    batches = torch.arange(len(data.labels)).split(FISHER_BATCH)
    for chosen in batches:
        features = learning.base.features(as_floats(data.pictures[chosen]))
        loss = F.cross_entropy(logits(features, rows), data.labels[chosen].to(device))
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                fisher[name] = fisher.get(name, 0) + gradient.square() / len(batches)  # type: ignore[operator]
