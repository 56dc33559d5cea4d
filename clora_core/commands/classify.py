"""`classify`: a classifier of pictures that learns one folder of classes after another and keeps no pictures."""

import argparse
import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from ..classification.classify import Accuracies, accuracies, answers, classified, reading
from ..classification.file import append_task, load_task_museum, save_task_museum
from ..classification.learn import ClassPictures, TaskLearning
from ..classification.museum import TaskMuseum, renamed_class, without_class
from ..classification.recipe import DEFAULT, METHODS, Head, method_named
from ..classification.vision import STARTER, Vision, open_vision
from ..errors import ConceptError, MuseumError
from ..museum.editing import now
from ..museum.file import check_target, identity
from ..pictures import SUFFIXES, upright
from ..sheets import confusion_sheet
from .learn import run_resumably, state_path
from .progress import Say

NUMBERS = {
    "rank": "of every delta",
    "learning_rate": "of the deltas",
    "token_learning_rate": "of the head",
    "batch_size": "pictures per step",
    "seed": "of all randomness in training",
}


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "classify",
        help="a picture classifier that learns classes one task after another",
        description="Teach a vision transformer one folder of classes after another. No earlier picture is needed.",
    )
    kinds = parser.add_subparsers(title="commands", metavar="", required=True)

    learn = kinds.add_parser("learn", help="learn new classes from a folder with a subfolder for each class")
    _add_base(learn)
    learn.add_argument("--museum", type=Path, required=True, help="museum file to add to; created if needed")
    learn.add_argument("--classes", type=Path, required=True, help="folder with a subfolder of pictures for each class")
    learn.add_argument("--method", choices=sorted(METHODS), default=DEFAULT, help="how to learn (%(default)s)")
    learn.add_argument("--head", choices=get_args(Head), help=f"what decides between classes ({METHODS[DEFAULT].head})")
    learn.add_argument("--epochs", type=int, help=f"passes over the pictures ({METHODS[DEFAULT].epochs})")
    learn.add_argument("--flip", action="store_true", help="mirror pictures at random, half of the time")
    for name, meaning in NUMBERS.items():
        default = getattr(METHODS[DEFAULT].learning, name)
        learn.add_argument(f"--{name.replace('_', '-')}", type=type(default), help=f"{meaning} ({default})")
    learn.set_defaults(run=run_learn)

    view = kinds.add_parser("view", help="the five likeliest classes of each picture")
    _add_base(view)
    view.add_argument("--museum", type=Path, required=True, help="museum file")
    view.add_argument("images", type=Path, nargs="+", help="pictures, or folders of pictures")
    view.add_argument("--json", type=Path, help="also write the classes and shares to this JSON file")
    view.add_argument("--csv", type=Path, help="also write the classes and shares to this CSV file")
    view.set_defaults(run=run_view)

    test = kinds.add_parser("test", help="accuracy per class and per task on pictures whose classes are known")
    _add_base(test)
    test.add_argument("--museum", type=Path, required=True, help="museum file")
    test.add_argument("folder", type=Path, help="folder with a subfolder of pictures for each class")
    test.add_argument("--out", type=Path, help="also draw the confusion matrix to this picture")
    test.set_defaults(run=run_test)

    show = kinds.add_parser("show", help="the tasks and classes of a museum")
    show.add_argument("museum", type=Path, help="museum file")
    show.set_defaults(run=run_show)

    edit = kinds.add_parser("edit", help="rename or remove a class")
    edit.add_argument("museum", type=Path, help="museum file")
    edit.add_argument("--rename", nargs=2, action="append", default=[], metavar=("OLD", "NEW"), help="rename a class")
    edit.add_argument("--remove", action="append", default=[], metavar="CLASS", help="remove a class")
    edit.set_defaults(run=run_edit)


def run_learn(arguments: argparse.Namespace, say: Say) -> None:
    check_target(arguments.museum)
    numbers = {name: value for name in NUMBERS if (value := getattr(arguments, name)) is not None}
    recipe = method_named(arguments.method)
    recipe = dataclasses.replace(
        recipe,
        learning=dataclasses.replace(recipe.learning, flip=arguments.flip, **numbers),
        epochs=recipe.epochs if arguments.epochs is None else arguments.epochs,
        head=arguments.head or recipe.head,
    )
    base = open_vision(arguments.base, device=arguments.device)
    museum = load_task_museum(arguments.museum) if arguments.museum.exists() else TaskMuseum(base.fingerprint)
    task = read_classes(arguments.classes, base, say)
    say(f"Learning {len(task.classes)} classes from {len(task.labels)} pictures, method {arguments.method}.")
    learning = TaskLearning(base, museum, task, recipe)
    state = state_path(arguments.museum, task.classes[0], learning.key)
    learned = run_resumably(learning.run, state, say, title=task.classes[0], steps=learning.loop.steps)
    learned = dataclasses.replace(learned, facts={**learned.facts, "date": now()})
    museum = append_task(learned, arguments.museum, base=base)
    state.unlink(missing_ok=True)
    say(f"{arguments.museum} now has {len(museum.classes)} classes. Tasks: {len(museum.tasks)}.")


def run_view(arguments: argparse.Namespace, say: Say) -> None:
    museum, base = _opened(arguments)
    paths = [path for given in arguments.images for path in (_files(given, say) if given.is_dir() else [given])]
    if not paths:
        raise ConceptError("There are no pictures in this folder.")
    verdicts = classified(base, museum, torch.stack([base.prepared(upright(path)) for path in paths]))
    for path, verdict in zip(paths, verdicts, strict=True):
        pairs = zip(verdict.classes, verdict.shares, strict=True)
        say(f"{path}: " + ", ".join(f"{name} {share:.0%}" for name, share in pairs))
    rows = [
        {"file": str(path), "classes": list(verdict.classes), "shares": list(verdict.shares)}
        for path, verdict in zip(paths, verdicts, strict=True)
    ]
    if arguments.json:
        _write(arguments.json, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    if arguments.csv:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["file", "rank", "class", "share"])
        for path, verdict in zip(paths, verdicts, strict=True):
            for rank, (name, share) in enumerate(zip(verdict.classes, verdict.shares, strict=True), start=1):
                writer.writerow([path, rank, name, share])
        _write(arguments.csv, table.getvalue())


def run_test(arguments: argparse.Namespace, say: Say) -> None:
    museum, base = _opened(arguments)
    task = read_classes(arguments.folder, base, say)
    if unknown := sorted(set(task.classes) - set(museum.classes)):
        raise ConceptError(f"The museum does not know the class '{unknown[0]}' of '{arguments.folder}'.")
    with reading(base, museum):
        values = answers(base, museum, task.pictures)
    result = accuracies(museum, values, [task.classes[label] for label in task.labels.tolist()])
    for name, share in result.classes.items():
        say(f"  {name}: {share:.0%}")
    for place, (share, within) in enumerate(zip(result.tasks, result.within, strict=True), start=1):
        if share == share:  # not a number where a task has no pictures here
            say(f"task {place}: {share:.1%} among all classes, {within:.1%} among its own")
    say(f"mean of the classes: {sum(result.classes.values()) / len(result.classes):.1%}")
    if arguments.out:
        _draw_confusion(result, museum.classes, arguments.out)


def run_show(arguments: argparse.Namespace, say: Say) -> None:
    museum = load_task_museum(arguments.museum)
    say(f"{arguments.museum}: {len(museum.classes)} classes in {len(museum.tasks)} tasks over {museum.base}")
    for place, task in enumerate(museum.tasks, start=1):
        rank = max((delta.rank for delta in task.deltas.values()), default=0)
        facts = [task.recipe.method, f"head {task.recipe.head}", f"rank {rank}"]
        for name, value in task.facts.items():
            facts.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
        say(f"{place}. {', '.join(task.classes) or 'no class left'}\n   {', '.join(facts)}")


def run_edit(arguments: argparse.Namespace, say: Say) -> None:
    if not arguments.rename and not arguments.remove:
        raise MuseumError("There is nothing to do. Add --rename OLD NEW or --remove CLASS.")
    read = identity(arguments.museum) if arguments.museum.exists() else None
    museum = load_task_museum(arguments.museum)
    for old, new in arguments.rename:
        museum = renamed_class(museum, old, new)
        say(f"'{old}' is now '{new}'.")
    for name in arguments.remove:
        museum = without_class(museum, name)
        say(f"'{name}' is removed.")
    save_task_museum(museum, arguments.museum, read=read)


def read_classes(folder: Path, base: Vision, say: Say) -> ClassPictures:
    """The pictures of a folder with a subfolder for each class, in order of their names."""
    if not folder.is_dir():
        raise ConceptError(f"'{folder}' is not a folder. Give the folder that holds a subfolder for each class.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ConceptError(f"There are no subfolders in '{folder}'. Put each class into its own folder.")
    files = [(path, label) for label, place in enumerate(classes) for path in _files(place, say)]
    if not files:
        raise ConceptError(f"There are no pictures in the folders of '{folder}'. Expected {', '.join(SUFFIXES)}.")
    pictures = torch.stack([base.prepared(upright(path)) for path, _ in files])
    labels = torch.tensor([label for _, label in files])
    return ClassPictures(tuple(place.name for place in classes), pictures, labels)


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=STARTER, help="'starter', or a vision transformer's folder (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")


def _opened(arguments: argparse.Namespace) -> tuple[TaskMuseum, Vision]:
    museum = load_task_museum(arguments.museum)
    if not museum.classes:
        raise MuseumError(f"{arguments.museum} knows no classes.")
    base = open_vision(arguments.base, device=arguments.device)
    museum.check_over(base)
    return museum, base


def _files(folder: Path, say: Say) -> list[Path]:
    """The pictures of a folder. Says what else is in it."""
    paths = sorted(folder.iterdir())
    if others := [path.name for path in paths if path.suffix.lower() not in SUFFIXES]:
        say(f"{folder}: {', '.join(others[:3])}{', …' if others[3:] else ''} left out, not a picture.")
    return [path for path in paths if path.name not in others]


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8", newline="")
    except OSError as error:
        raise ConceptError(f"'{path}' cannot be written: {error.strerror or error}.") from error


def _draw_confusion(result: Accuracies, classes: Sequence[str], path: Path) -> None:
    """Row: the class of the pictures; column: what they were taken for; the number is a share of the row."""
    names = [name for name in classes if name in result.confusion]
    columns = [name for name in classes if any(name in row for row in result.confusion.values())]
    shares = [
        [result.confusion[name].get(other, 0) / sum(result.confusion[name].values()) for other in columns]
        for name in names
    ]
    try:
        confusion_sheet(shares, names, columns).save(path)
    except (OSError, ValueError) as error:
        raise ConceptError(f"The picture cannot be written to '{path}': {error}.") from error
