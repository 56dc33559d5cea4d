"""Classify pictures with a museum of classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MuseumError
from .heads import head_rows, logits
from .museum import TaskMuseum
from .vision import Vision

MOST = 5  # classes of a verdict


@contextmanager
def reading(base: Vision, museum: TaskMuseum) -> Iterator[None]:
    """While entered, the network's features are those that the museum's classes were learned with."""
    museum.check_over(base)
    with base.merged(museum.dense()):
        yield


@dataclass(frozen=True)
class Verdict:
    """One picture's classes, the likeliest first, and their shares."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]

    def __str__(self) -> str:
        """The likeliest class, and every other one that does not round to 0 %."""
        texts = [f"{name} {share:.0%}" for name, share in zip(self.classes, self.shares, strict=True)]
        return ", ".join(texts[:1] + [text for text in texts[1:] if not text.endswith(" 0%")])


@torch.no_grad()
def classified(base: Vision, museum: TaskMuseum, pictures: Tensor) -> list[Verdict]:
    """The likeliest classes of each picture, at most `MOST`. pictures: bytes (n, 3, side, side)."""
    with reading(base, museum):
        values = class_logits(base, museum, pictures).softmax(1)
    shares, places = values.topk(min(MOST, values.shape[1]), dim=1)
    return [
        Verdict(tuple(museum.classes[place] for place in row), tuple(own))
        for row, own in zip(places.tolist(), shares.tolist(), strict=True)
    ]


def class_logits(base: Vision, museum: TaskMuseum, pictures: Tensor) -> Tensor:
    """The logits of all classes by the head of the museum's last task, (n, classes), inside `reading`."""
    if not museum.classes:
        raise MuseumError("This museum has no classes.")
    recipe = museum.tasks[-1].recipe
    values = logits(base.all_features(pictures), head_rows(museum, recipe.head, corrected=recipe.corrected))
    if not values.isfinite().all():
        raise MuseumError("The logits are not finite: the statistics of this museum are broken.")
    return values


@dataclass(frozen=True)
class Accuracies:
    """Shares of test pictures: per class and per task, among all classes seen; within: among the task's own classes.

    confusion: class → the class it was taken for → number of pictures.
    """

    classes: dict[str, float]
    tasks: tuple[float, ...]
    within: tuple[float, ...]
    confusion: dict[str, dict[str, int]]


@torch.no_grad()
def accuracies(museum: TaskMuseum, values: Tensor, truth: Sequence[str]) -> Accuracies:
    """values: logits (n, classes) of pictures whose classes are `truth`."""
    order = {name: place for place, name in enumerate(museum.classes)}
    labels = torch.tensor([order[name] for name in truth])
    guesses = values.argmax(1)
    hits = guesses == labels
    classes = {name: float(hits[labels == order[name]].float().mean()) for name in dict.fromkeys(truth)}
    tasks, within = task_accuracies(values, labels, [len(task.classes) for task in museum.tasks])
    confusion: dict[str, dict[str, int]] = {}
    for label, guess in zip(truth, guesses.tolist(), strict=True):
        row = confusion.setdefault(label, {})
        row[museum.classes[guess]] = row.get(museum.classes[guess], 0) + 1
    return Accuracies(classes, tuple(tasks), tuple(within), confusion)


def task_accuracies(values: Tensor, labels: Tensor, sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """The accuracy on each task's pictures, among all classes and among the task's own; NaN for a task without any.

    values: logits (n, classes). labels: (n,). sizes: classes per task.
    """
    everywhere, within = [], []
    start = 0
    for size in sizes:
        own = (labels >= start) & (labels < start + size)
        everywhere.append(float((values[own].argmax(1) == labels[own]).float().mean()))
        local = values[own][:, start : start + size].argmax(1) + start if size else labels[own]
        within.append(float((local == labels[own]).float().mean()))
        start += size
    return everywhere, within
