"""A museum of classes in one safetensors file. Its metadata says which kind of museum it is.

    clora.<task>.<name>          rows, means, counts, scatter, drift
    clora.<task>.up.<projection> .down.<projection> .inputs.<layer>

Like museums of concepts, it is written atomically and sealed with a hash, and a replaced file is kept as a backup.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MuseumError
from ..model.base import Fingerprint
from ..model.low_rank import LowRank
from ..model.projections import Projection
from ..museum.file.damage import sealed, undamaged
from ..museum.file.files import Identity, check_finite, dump, errors_about, identity, opened, read_metadata
from ..museum.file.header import projection_from_json, recipe_from_json
from ..museum.file.json_values import array, fields, integer, json_text, json_value, mapping, text
from ..museum.file.replacing import ChangedMeanwhileError, replacing
from .museum import Task, TaskMuseum, check_class
from .recipe import TaskRecipe
from .vision import Vision, layer_path

FORMAT = "clora-class-museum"
VERSION = "1"
ROLES = ("query", "key", "value")
COUNT_LIMIT = 2**31  # pictures of a class
TASK_FIELDS = ("classes", "recipe", "facts", "ranks", "layers", "drift")


def save_task_museum(museum: TaskMuseum, path: Path | str, *, read: Identity | None = None) -> Path:
    """Write the museum and return its path.

    read: the `identity` of the file that the museum was read from, which becomes a backup. A file that has changed
    since is not replaced, and without `read` no file is.
    """
    path = Path(path)
    with errors_about(path), replacing(path, "keep beside" if read else "refuse", read=read) as file:
        tensors = {name: value for place, task in enumerate(museum.tasks) for name, value in _tensors(place, task)}
        header = json_text(_header(museum), "The museum")
        metadata = {"clora.format": FORMAT, "clora.version": VERSION, "clora.museum": header}
        dump(file, tensors, lambda content: sealed(metadata, tensors, content))
    return path


def append_task(before: TaskMuseum, task: Task, path: Path | str, *, base: Vision) -> TaskMuseum:
    """Add a task, learned after those of `before`, to the museum in the file, and return the museum.

    What another program has added since the task was learned stays. If there is no file, `before` is written too.
    Raises MuseumError if the file has a class of the task by now.
    """
    path = Path(path)
    while True:
        read = identity(path) if path.exists() else None
        museum = load_task_museum(path) if read else before
        museum.check_over(base)
        museum = museum.with_task(task)
        try:
            save_task_museum(museum, path, read=read)
            return museum
        except MuseumError as error:
            created = read is None and path.exists()
            if not created and not isinstance(error.__cause__, ChangedMeanwhileError):
                raise


def load_task_museum(path: Path | str) -> TaskMuseum:
    """Read the museum, bit for bit, on the CPU. Raises MuseumError for a damaged file or another kind of museum."""
    path = Path(path)
    with errors_about(path), opened(path) as file, undamaged(path, file):
        metadata = read_metadata(file, FORMAT, VERSION)
        header = fields(
            json_value(metadata.get("clora.museum", ""), "The museum"), ("base", "slots", "tasks"), "The museum"
        )
        base = fields(header["base"], ("name", "digest"), "The base")
        slots = {slot.path: slot for slot in map(projection_from_json, array(header["slots"], "The projections"))}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        check_finite(tensors)
        tasks = tuple(
            _task(place, entry, slots, tensors) for place, entry in enumerate(array(header["tasks"], "The tasks"))
        )
        if tensors:
            raise MuseumError(f"There is a tensor '{min(tensors):.100}' that its header does not mention.")
        return TaskMuseum(Fingerprint(text(base["name"], "The base"), text(base["digest"], "The base")), tasks)


def _header(museum: TaskMuseum) -> dict[str, object]:
    slots = sorted({projection for task in museum.tasks for projection in task.deltas})
    return {
        "base": {"name": museum.base.family, "digest": museum.base.digest},
        "slots": [[slot.path, slot.role, *slot.shape] for slot in slots],
        "tasks": [
            {
                "classes": list(task.classes),
                "recipe": task.recipe.to_json(),
                "facts": dict(task.facts),
                "ranks": {projection.path: delta.rank for projection, delta in sorted(task.deltas.items())},
                "layers": {layer: len(moment) for layer, moment in sorted(task.inputs.items())},
                "drift": task.drift is not None,
            }
            for task in museum.tasks
        ],
    }


def _tensors(place: int, task: Task) -> Iterator[tuple[str, Tensor]]:
    stem = f"clora.{place}"
    own = {"rows": task.rows, "means": task.means, "counts": task.counts, "scatter": task.scatter}
    own |= {} if task.drift is None else {"drift": task.drift}
    own |= {f"inputs.{layer}": moment for layer, moment in task.inputs.items()}
    for projection, delta in task.deltas.items():
        own |= {f"up.{projection.path}": delta.up, f"down.{projection.path}": delta.down}
    for name, value in sorted(own.items()):
        yield f"{stem}.{name}", value.detach().cpu().contiguous()


def _recipe(value: object, what: str) -> TaskRecipe:
    values = fields(value, tuple(field.name for field in dataclasses.fields(TaskRecipe)), what)
    return TaskRecipe(**{**values, "learning": recipe_from_json(values["learning"], what)})  # type: ignore[arg-type]


def _task(place: int, entry: object, slots: Mapping[str, Projection], tensors: dict[str, Tensor]) -> Task:
    """The task from its entry in the header; its tensors are taken out of `tensors`."""
    what = f"Task {place + 1}"
    values = fields(entry, TASK_FIELDS, what)
    classes = tuple(text(name, f"{what}: a class") for name in array(values["classes"], f"{what}: classes"))
    for name in classes:
        check_class(name)

    def taken(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        key = f"clora.{place}.{name}"
        if (value := tensors.pop(key, None)) is None:
            raise MuseumError(f"The tensor '{key}' is missing.")
        if tuple(value.shape) != shape or value.dtype != dtype:
            raise MuseumError(f"'{key}' is {value.dtype} of shape {tuple(value.shape)}; expected {dtype} of {shape}.")
        return value

    if (scatter := tensors.get(f"clora.{place}.scatter")) is None or scatter.ndim != 2:
        raise MuseumError(f"{what} has no scatter matrix.")
    width, count = len(scatter), len(classes)
    deltas = {}
    for path, rank in mapping(values["ranks"], f"{what}: ranks").items():
        if (slot := slots.get(path)) is None:
            raise MuseumError(f"{what} has a delta on '{path:.100}', which is not a projection of this museum.")
        rank = integer(rank, f"{what}: a rank", least=1)
        deltas[slot] = LowRank(taken(f"up.{path}", slot.shape[0], rank), taken(f"down.{path}", rank, slot.shape[1]))
    if unknown := [s.path for s in deltas if s.role not in ROLES or f"{layer_path(s)}.{s.role}" != s.path]:
        raise MuseumError(f"'{unknown[0]:.100}' is not the name of a query, key or value projection.")
    inputs = {}
    for layer, size in mapping(values["layers"], f"{what}: layers").items():
        size = integer(size, f"{what}: the width of a layer", least=1)
        inputs[layer] = taken(f"inputs.{layer}", size, size)
    counts = taken("counts", count, dtype=torch.int64)
    if not (counts.ge(1) & counts.lt(COUNT_LIMIT)).all():
        raise MuseumError(f"{what} has a class with no picture, or with more than {COUNT_LIMIT}.")
    return Task(
        classes,
        deltas,
        taken("rows", count, width + 1),
        taken("means", count, width),
        counts,
        taken("scatter", width, width),
        inputs,
        _recipe(values["recipe"], f"{what}: recipe"),
        taken("drift", width, width) if values["drift"] is True else None,
        mapping(values["facts"], f"{what}: facts"),
    )
