"""A museum of classes: tasks, in order, for one vision transformer. No picture is stored."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import BaseModelError, ConceptError, MuseumError
from ..model.base import Fingerprint
from ..model.low_rank import LowRank
from ..model.projections import Projection
from ..museum.museum import summed
from ..texts import normal, unprintable
from .recipe import TaskRecipe
from .vision import Vision, layer_path

NAME_LIMIT = 200  # characters


@dataclass(frozen=True, eq=False)
class Task:
    """The classes that were learned together, and everything that is needed to recognize them.

    rows: of the linear head, (classes, width + 1), the last column being the bias. means: of each class's features,
    (classes, width), when it was learned. counts: pictures per class, (classes,). scatter: Σ (f - mean)(f - mean)ᵀ over
    the task's pictures, (width, width). drift: the linear map (width, width) of features from before this task to
    after it; None if nothing before it has changed. inputs: layer → second moment of what its queries, keys and values
    read, (in, in), on the pictures of this task and of the tasks right before it that have none.
    """

    classes: tuple[str, ...]
    deltas: Mapping[Projection, LowRank]
    rows: Tensor
    means: Tensor
    counts: Tensor
    scatter: Tensor
    inputs: Mapping[str, Tensor]
    recipe: TaskRecipe
    drift: Tensor | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TaskMuseum:
    """Tasks in the order in which they were learned. Immutable: every change is a new museum."""

    base: Fingerprint
    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(self.classes)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise MuseumError(f"The class '{min(repeated)}' is in this museum twice. Rename one of the two.")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(name for task in self.tasks for name in task.classes)

    def check_over(self, base: Vision) -> None:
        """Raise BaseModelError unless this museum was made for that network, and fits it."""
        if self.base != base.fingerprint:
            raise BaseModelError(
                f"This museum was made for '{self.base}', but the loaded network is '{base.fingerprint}'. Choose "
                "the museum's network (network of Sort Pictures, --base of classify), or start a new museum."
            )
        for task in self.tasks:
            if foreign := [projection.path for projection in task.deltas if projection not in base.slots]:
                raise BaseModelError(f"The network has no projection '{foreign[0]:.100}' of the shape in this museum.")
            if (width := len(task.scatter)) != base.width:
                raise BaseModelError(f"The museum's features have width {width}; the network's have {base.width}.")
        expected = {layer_path(projection): projection.shape[1] for projection in base.slots}
        for sizes in [{layer: len(moment) for layer, moment in task.inputs.items()} for task in self.tasks]:
            if sizes and sizes != expected:
                raise BaseModelError("The second moments in this museum are not those of the network's layers.")
        if self.tasks and not self.tasks[-1].inputs:
            raise BaseModelError("This museum has no second moments of the last task.")

    @torch.no_grad()
    def dense(self) -> dict[Projection, Tensor]:
        """projection → Σ of the tasks' deltas, (out, in) float32."""
        return {projection: delta.dense() for projection, delta in self.deltas().items()}

    def deltas(self) -> dict[Projection, LowRank]:
        """projection → Σ of the tasks' deltas, exactly, as one low-rank matrix."""
        return summed(task.deltas for task in self.tasks)

    def inputs(self) -> dict[str, Tensor]:
        """layer → second moment of what its projections read on the pictures of all tasks; each picture counts once."""
        moments: dict[str, Tensor] = {}
        total = sum(int(task.counts.sum()) for task in self.tasks)
        counted = 0
        for task in self.tasks:
            counted += int(task.counts.sum())
            for layer, moment in task.inputs.items():
                moments[layer] = moments.get(layer, 0) + counted / max(1, total) * moment  # type: ignore[operator]
            counted = 0 if task.inputs else counted
        return moments

    def with_task(self, task: Task) -> "TaskMuseum":
        """This museum and one more task, whose `inputs` then are those of all tasks: their memory does not grow."""
        whole = replace(self, tasks=(*self.tasks, task))
        earlier = (replace(other, inputs={}) for other in self.tasks)
        return replace(self, tasks=(*earlier, replace(task, inputs=whole.inputs())))


def renamed_class(museum: TaskMuseum, old: str, new: str) -> TaskMuseum:
    """The museum with another name for a class."""
    old, new = known_class(museum, old), class_name(new)
    check_class(new)
    if new != class_name(old) and new in map(class_name, museum.classes):
        raise MuseumError(f"The museum already has the class '{new}'. Choose another name, or remove that class first.")
    tasks = [replace(t, classes=tuple(new if name == old else name for name in t.classes)) for t in museum.tasks]
    return replace(museum, tasks=tuple(tasks))


def without_class(museum: TaskMuseum, name: str) -> TaskMuseum:
    """The museum without a class. The deltas of its task stay, since later tasks were learned on top of them.

    The scatter of the task is of all its classes together; it shrinks by the share of the pictures that go.
    """
    name = known_class(museum, name)
    task = next(task for task in museum.tasks if name in task.classes)
    kept = [place for place, other in enumerate(task.classes) if other != name]
    fewer = replace(
        task,
        classes=tuple(task.classes[place] for place in kept),
        rows=task.rows[kept],
        means=task.means[kept],
        counts=task.counts[kept],
        scatter=task.scatter * (task.counts[kept].sum() / task.counts.sum()),
    )
    return replace(museum, tasks=tuple(fewer if other is task else other for other in museum.tasks))


def class_name(text: str) -> str:
    """The name of a class as names are compared and kept: look-alikes, such as two spellings of é, are the same."""
    return normal(text).strip()


def known_class(museum: TaskMuseum, name: str) -> str:
    """The class of this name, as the museum spells it. Raises MuseumError if there is none."""
    for own in museum.classes:
        if class_name(own) == class_name(name):
            return own
    raise MuseumError(f"There is no class '{name:.80}' in this museum. It has: {', '.join(museum.classes[:20])}.")


def check_class(name: str) -> None:
    """Raise ConceptError for an invalid name of a class."""
    if not name.strip() or len(name) > NAME_LIMIT or unprintable(name):
        raise ConceptError(f"{name!r:.100} is not a valid name of a class. Use 1 to {NAME_LIMIT} printable characters.")


def check_new(museum: TaskMuseum, classes: Sequence[str]) -> None:
    """Raise ConceptError for classes that cannot be added."""
    names = list(map(class_name, classes))
    for name in names:
        check_class(name)
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ConceptError(f"Two classes have the name '{repeated[0]}'. Rename one of the two.")
    if known := sorted(set(names) & set(map(class_name, museum.classes))):
        raise ConceptError(f"The museum already has the class '{known[0]}'. Rename one of the two, or leave it out.")
    if len(museum.classes) + len(classes) < 2:
        raise ConceptError("Give at least two classes, so that there is something to tell apart.")
