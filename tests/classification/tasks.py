"""Small tasks of colors for these tests, and naive reference implementations."""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clora_core.classification.learn import ClassPictures, TaskLearning
from clora_core.classification.museum import TaskMuseum
from clora_core.classification.recipe import METHODS, TaskRecipe
from clora_core.classification.vision import Vision, attention_projections
from clora_core.pictures import as_floats

NAMES = ("red", "green", "blue", "dark")
COLORS = torch.tensor([[220, 40, 40], [40, 220, 40], [40, 40, 220], [30, 30, 30]])


def pictures(*names: str, count: int = 6, seed: int = 0) -> ClassPictures:
    """Noise around one color a class, bytes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names)).repeat_interleave(count)
    colors = COLORS[[NAMES.index(name) for name in names]][labels]
    noise = torch.randint(-30, 31, (len(labels), 3, 48, 48), generator=rng)
    return ClassPictures(names, (colors[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels)


def recipe(method: str = "c-lora", head: str = "linear", **changes: object) -> TaskRecipe:
    """Small, with a linear head that starts at random: rows that start at the means leave nothing to learn here."""
    whole = METHODS[method]
    learning = dataclasses.replace(whole.learning, rank=4, batch_size=5, learning_rate=3e-3)
    return dataclasses.replace(whole, **{"epochs": 3, "learning": learning, "head": head, **changes})


def one_task(vision: Vision, method: str = "c-lora", head: str = "linear") -> TaskMuseum:
    return with_learned(vision, TaskMuseum(vision.fingerprint), NAMES[:2], method, head)


def two_tasks(vision: Vision, method: str = "c-lora", head: str = "linear") -> TaskMuseum:
    return with_learned(vision, one_task(vision, method, head), NAMES[2:], method, head)


def with_learned(vision: Vision, museum: TaskMuseum, names: Sequence[str], method: str, head: str) -> TaskMuseum:
    return museum.with_task(TaskLearning(vision, museum, pictures(*names), recipe(method, head)).run())


def merged(vision: Vision, museum: TaskMuseum) -> torch.nn.Module:
    """A copy of the network with the museum's deltas added to its weights; the hooks must give the same."""
    network = copy.deepcopy(vision.network)
    for projection, module in attention_projections(network).items():
        for task in museum.tasks:
            if projection in task.deltas:
                module.weight += task.deltas[projection].up @ task.deltas[projection].down
    return network


def plain_features(network: torch.nn.Module, values: Tensor) -> Tensor:
    with torch.no_grad():
        return network(pixel_values=as_floats(values)).last_hidden_state[:, 0]  # this network's mean and deviation: 0.5


def tensors(museum: TaskMuseum) -> list[Tensor]:
    values = [value for task in museum.tasks for value in (task.rows, task.means, task.scatter, task.counts)]
    return values + [
        factor for task in museum.tasks for _, d in sorted(task.deltas.items()) for factor in (d.up, d.down)
    ]
