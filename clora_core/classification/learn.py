"""Learn one task of new classes after all that a museum holds, with the training loop of `learning/loop.py`.

As C-LoRA (arXiv:2304.06027, section 5) does it: deltas on the queries, keys and values of every self-attention, the
earlier ones frozen and summed; cross-entropy over the task's own classes; a fresh optimizer.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConceptError, RecipeError
from ..learning.loop import Progress, train
from ..learning.start import copied, parameter, random_down, trainable
from ..learning.state import LearningState
from ..method.recipe import Recipe
from ..method.step import AnySetting, Deltas, Past
from ..model.attach import attached
from ..model.low_rank import LowRank
from ..model.moments import Moments
from ..model.text_states import Report
from ..pictures import as_floats
from ..seeds import bytes_of, seeded
from .heads import drift_between, logits, mean_rows, random_rows, statistics
from .museum import Task, TaskMuseum, check_new
from .recipe import TaskRecipe
from .vision import Vision, layer_path


@dataclass(frozen=True, eq=False)
class ClassPictures:
    """The pictures of some classes. pictures: bytes (n, 3, side, side). labels: (n,), places in `classes`."""

    classes: tuple[str, ...]
    pictures: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        if empty := [name for name, count in zip(self.classes, counts.tolist(), strict=True) if not count]:
            raise ConceptError(f"The class '{empty[0]}' has no pictures.")


@dataclass(frozen=True, eq=False)
class TaskTrained:
    """Everything that is trained. rows: of the head, for the task's own classes, (classes, width + 1)."""

    deltas: Deltas
    rows: nn.Parameter

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name."""
        return trainable({"head.rows": self.rows}, self.deltas)

    def settle(self) -> None:
        """Nothing is projected after an update."""


@dataclass(frozen=True, eq=False)
class TaskStep:
    """One training step.

    chosen: places of the batch in the task's pictures, (b,). features: (b, width). logits: of the task's own classes,
    (b, classes). labels: (b,).
    """

    chosen: Tensor
    features: Tensor
    logits: Tensor
    labels: Tensor
    deltas: Deltas

    def zero(self) -> Tensor:
        """A zero on the device of the loss, float32."""
        return self.logits.new_zeros((), dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class TaskLearning:
    """Everything that goes into learning one task. Raises for a museum of another network and for known classes."""

    base: Vision
    museum: TaskMuseum
    task: ClassPictures
    recipe: TaskRecipe

    def __post_init__(self) -> None:
        self.museum.check_over(self.base)
        check_new(self.museum, self.task.classes)
        if self.recipe.head == "linear" and self.recipe.epochs and len(self.task.classes) < 2:
            raise RecipeError(
                "The linear head learns to tell the classes of one task apart, but this task has only "
                f"{', '.join(self.task.classes)}. Add another class, or use the head lda, means or imprint."
            )
        if (rank := self.recipe.learning.rank) > (widest := max(min(slot.shape) for slot in self.base.slots)):
            raise RecipeError(f"rank is {rank}; the projections of this network have at most rank {widest}. Lower it.")

    @property
    def loop(self) -> Recipe:
        """The loop's numbers, with as many steps as the epochs take."""
        steps = self.recipe.epochs * math.ceil(len(self.task.labels) / self.recipe.learning.batch_size)
        return replace(self.recipe.learning, steps=max(1, steps))

    @property
    def adapts(self) -> bool:
        """Whether this task gets deltas."""
        adapt = self.recipe.adapt
        return self.loop.rank > 0 and (adapt == "every" or (adapt == "first" and not self.museum.tasks))

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that decides what is learned, in hexadecimal."""
        digest = hashlib.sha256()
        texts = [self.base.fingerprint.digest, self.task.classes, self.recipe.to_json()]
        texts += [[task.classes, task.recipe.to_json()] for task in self.museum.tasks]
        digest.update(json.dumps(texts, sort_keys=True).encode())
        tensors = [self.task.pictures, self.task.labels, *self.museum.inputs().values()]
        for delta in self.museum.deltas().values():
            tensors += [delta.up, delta.down]
        for value in tensors:
            digest.update(bytes_of(value))
        return digest.hexdigest()

    def run(
        self,
        *,
        report: Callable[[Progress[TaskTrained]], None] | None = None,
        reading: Report | None = None,
        resume: LearningState | None = None,
    ) -> Task:
        """Learn the task. Neither the network nor the museum is changed. Raises what `loop.train` raises.

        `report` is called after every update and may raise to stop; so is `reading`, while the pictures are read
        before the first update and after the last.
        """
        base, task, loop = self.base, self.task, self.loop
        past = {projection: matrix.to(base.device) for projection, matrix in self.museum.dense().items()}
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            base.learning(precision=loop.precision, checkpointing=loop.checkpointing) as computed_in,
            base.merged(past),
        ):
            before = base.all_features(task.pictures, reading)
            trained = self.start(before)
            setting = AnySetting(
                past=Past(total=past, deltas=[earlier.deltas for earlier in self.museum.tasks if earlier.deltas]),
                measure_reference_loss=lambda: float(
                    F.cross_entropy(logits(before, trained.rows.detach().cpu()), task.labels)
                ),
                measure_moments=self._moments,
            )
            terms = self.terms(setting, before)
            with attached(base, trained.deltas):

                def losses_of(number: int) -> dict[str, Tensor]:
                    step = self._step(number, trained, before)
                    own = F.cross_entropy(step.logits, step.labels)
                    return {"classification": own, **{name: term(step) for name, term in terms.items()}}

                loss = math.nan
                if self.recipe.epochs:
                    loss = train(
                        trained,
                        losses_of,
                        loop,
                        key=self.key,
                        title=task.classes[0],
                        saving="Use a smaller batch size.",
                        device=base.device,
                        computed_in=computed_in,
                        report=report,
                        resume=resume,
                    )
            deltas = {place: copied(delta) for place, delta in trained.deltas.items()}
            with attached(base, deltas):
                after, inputs = self.read(reading)
        means, counts, scatter = statistics(after, task.labels, len(task.classes))
        return Task(
            task.classes,
            deltas,
            trained.rows.detach().cpu().clone(),
            means.float(),
            counts,
            scatter.float(),
            inputs,
            self.recipe,
            drift_between(before, after) if self.adapts and self.museum.tasks else None,
            {"pictures": len(task.labels), **({"loss": loss} if math.isfinite(loss) else {})},
        )

    def terms(self, setting: AnySetting, features: Tensor) -> dict[str, Callable[[Any], Tensor]]:
        """The further terms of the loss by name. features: of all pictures, before this task."""
        if not self.adapts:
            return {}
        return {regularizer.name: regularizer.begin(setting) for regularizer in self.loop.regularizers}  # type: ignore[arg-type]

    def start(self, features: Tensor) -> TaskTrained:
        """Deltas that change nothing yet, and the first rows of the head. features: of all pictures, before it."""
        task, loop, device = self.task, self.loop, self.base.device
        deltas = {}
        for projection in self.base.slots if self.adapts else ():
            down = random_down(loop, task.classes[0], projection)
            up = torch.zeros(projection.shape[0], len(down))
            deltas[projection] = LowRank(parameter(up, device), parameter(down, device))
        return TaskTrained(deltas, self.first_rows(features))

    def first_rows(self, features: Tensor) -> nn.Parameter:
        """The initial rows of the head, (classes, width + 1)."""
        count = len(self.task.classes)
        if self.recipe.head == "linear":
            rows = random_rows(count, features.shape[1], self.loop.seed, self.task.classes[0])
        else:
            means, _, scatter = statistics(features, self.task.labels, count)
            rows = mean_rows(means, float(scatter.trace()) / len(features))
        return parameter(rows, self.base.device)

    def _step(self, number: int, trained: TaskTrained, before: Tensor) -> TaskStep:
        """The forward pass of batch `number`. It depends on the number and the trained parameters only."""
        loop, task, device = self.loop, self.task, self.base.device
        per_epoch = math.ceil(len(task.labels) / loop.batch_size)
        epoch, place = divmod(number, per_epoch)
        order = torch.randperm(len(task.labels), generator=seeded("order", loop.seed, epoch))
        chosen = order[place * loop.batch_size : (place + 1) * loop.batch_size]
        pictures = as_floats(task.pictures[chosen])
        if loop.flip:
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=seeded("batch", loop.seed, number)) < 0.5
            pictures = torch.where(mirrored, pictures.flip(-1), pictures)
        moving = self.adapts or loop.flip
        features = self.base.features(pictures) if moving else before[chosen].to(device)
        labels = task.labels[chosen].to(device)
        return TaskStep(chosen, features, logits(features, trained.rows), labels, trained.deltas)

    def _moments(self) -> Moments:
        """Of what the projections read on the pictures of earlier tasks; zero for the first task."""
        known = self.museum.inputs()
        moments, sizes = {}, {}
        for projection, slot in self.base.slots.items():
            weight = slot.weight.float()
            moment = known.get(layer_path(projection), torch.zeros(projection.shape[1], projection.shape[1]))
            moments[projection] = moment = moment.to(weight.device)
            sizes[projection] = float(((weight @ moment) * weight).sum()) or 1.0
        return moments, sizes

    @torch.no_grad()
    def read(self, reading: Report | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The features of all pictures, (n, width), and the second moment of every layer's inputs."""
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def gather(layer: str):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].float().flatten(0, -2)
                sums[layer] = sums.get(layer, 0) + x.T @ x  # type: ignore[operator]
                rows[layer] = rows.get(layer, 0) + len(x)

            return hook

        handles = [
            slot.module.register_forward_pre_hook(gather(layer_path(projection)))
            for projection, slot in self.base.slots.items()
            if projection.role == "key"  # queries, keys and values of a layer read the same
        ]
        try:
            features = self.base.all_features(self.task.pictures, reading)
        finally:
            for handle in handles:
                handle.remove()
        return features, {layer: (total / rows[layer]).cpu() for layer, total in sums.items()}
