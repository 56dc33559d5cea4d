"""`classify`: a classifier of pictures that learns one folder of classes after another and keeps no pictures."""

import argparse
import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ..classification.classify import Accuracies, accuracies, class_logits, classified, reading
from ..classification.file import append_task, load_task_museum, save_task_museum
from ..classification.learn import ClassPictures, TaskLearning
from ..classification.museum import TaskMuseum, check_new, class_name, known_class, renamed_class, without_class
from ..classification.recipe import DEFAULT, METHODS, Head, TaskRecipe, method_named
from ..classification.vision import STARTER, Vision, open_vision
from ..errors import ConceptError, MuseumError
from ..museum.editing import now
from ..museum.file import check_names, check_target, identity
from ..picture_files import each_picture, files_in, upright
from ..sheets import confusion_sheet, write_picture
from ..texts import counted, encodable
from .edit import add_edits
from .model import check_device
from .progress import Say, reading_bar
from .resuming import run_resumably, state_path

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
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

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
    add_edits(edit, ("rename", ("OLD", "NEW"), "rename a class"), ("remove", ("CLASS",), "remove a class"))
    edit.set_defaults(run=run_edit)


def run_learn(arguments: argparse.Namespace, say: Say) -> None:
    check_target(arguments.museum)
    folders = class_folders(arguments.classes, say)
    base = _open(arguments)
    museum = load_task_museum(arguments.museum) if arguments.museum.exists() else TaskMuseum(base.fingerprint)
    museum.check_over(base)
    check_new(museum, [folder.name for folder in folders])
    recipe = _recipe(arguments, museum, say)
    task = read_classes(folders, base, say)
    say(f"Learning {counted(len(task.classes), 'class')} from {counted(len(task.labels), 'picture')}.")
    learning = TaskLearning(base, museum, task, recipe)
    state = state_path(arguments.museum, task.classes[0], learning.key)
    with reading_bar("reading pictures") as reading:
        learned = run_resumably(learning.run, state, say, learning.loop.steps, title=task.classes[0], reading=reading)
    learned = dataclasses.replace(learned, facts={**learned.facts, "date": now()})
    after = append_task(museum, learned, arguments.museum, base=base)
    state.unlink(missing_ok=True)
    if len(after.tasks) > len(museum.tasks) + 1:
        say("Another program added a task to this museum in the meantime. The two tasks were learned independently.")
    say(f"{arguments.museum} now has {counted(len(after.classes), 'class')} in {counted(len(after.tasks), 'task')}.")


def _recipe(arguments: argparse.Namespace, museum: TaskMuseum, say: Say) -> TaskRecipe:
    """The method with the numbers from the command line, and the head of the museum if none is given."""
    numbers = {name: value for name in NUMBERS if (value := getattr(arguments, name)) is not None}
    recipe = method_named(arguments.method)
    head = museum.tasks[-1].recipe.head if museum.tasks else recipe.head
    if arguments.head and museum.tasks and arguments.head != head:
        say(f"Note: this museum has the head {head}. From now on, {arguments.head} decides between all classes.")
    return dataclasses.replace(
        recipe,
        learning=dataclasses.replace(recipe.learning, flip=arguments.flip, **numbers),
        epochs=recipe.epochs if arguments.epochs is None else arguments.epochs,
        head=arguments.head or head,
    )


def run_view(arguments: argparse.Namespace, say: Say) -> None:
    _check_output(arguments.json, ".json")
    _check_output(arguments.csv, ".csv")
    if missing := [path for path in arguments.images if not path.exists()]:
        raise ConceptError(f"There is no file or folder '{missing[0]}'.")
    museum, base = _opened(arguments)
    files = [path for given in arguments.images for path in (files_in(given, say) if given.is_dir() else [given])]
    found = each_picture(files, _reader(base), say, root=Path())
    paths = [path for path, _ in found]
    verdicts = classified(base, museum, torch.stack([pixels for _, pixels in found]))
    names = [encodable(str(path), "utf-8") for path in paths]
    if arguments.json:
        rows = [
            {"file": name, "classes": list(verdict.classes), "shares": list(verdict.shares)}
            for name, verdict in zip(names, verdicts, strict=True)
        ]
        _write(arguments.json, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    if arguments.csv:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["file", "rank", "class", "share"])
        for name, verdict in zip(names, verdicts, strict=True):
            for rank, pair in enumerate(zip(verdict.classes, verdict.shares, strict=True), start=1):
                writer.writerow([name, rank, *pair])
        _write(arguments.csv, table.getvalue())
    for path, verdict in zip(paths, verdicts, strict=True):
        say(f"{path}: {verdict}")


def run_test(arguments: argparse.Namespace, say: Say) -> None:
    _check_output(arguments.out, ".png")
    museum, base = _opened(arguments)
    folders = class_folders(arguments.folder, say)
    names = [known_class(museum, folder.name) for folder in folders]
    task = read_classes(folders, base, say)
    with reading(base, museum):
        values = class_logits(base, museum, task.pictures)
    result = accuracies(museum, values, [names[label] for label in task.labels.tolist()])
    for name, share in result.classes.items():
        say(f"  {name}: {share:.0%}")
    for place, (share, within) in enumerate(zip(result.tasks, result.within, strict=True), start=1):
        if not math.isnan(share):  # the task has pictures here
            say(f"task {place}: {share:.1%} among all classes, {within:.1%} among its own")
    say(f"mean of the classes: {sum(result.classes.values()) / len(result.classes):.1%}")
    if arguments.out:
        _draw_confusion(result, museum.classes, arguments.out)


def run_show(arguments: argparse.Namespace, say: Say) -> None:
    museum = load_task_museum(arguments.museum)
    say(f"{arguments.museum}: {counted(len(museum.classes), 'class')} for {museum.base}")
    for place, task in enumerate(museum.tasks, start=1):
        rank = max((delta.rank for delta in task.deltas.values()), default=0)
        facts = [task.recipe.method, f"head {task.recipe.head}", f"rank {rank}" if rank else "no deltas"]
        for name, value in task.facts.items():
            text = f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            facts.append(" ".join(text.split()))
        say(f"{place}. {', '.join(task.classes) or 'no class left'}\n   {', '.join(facts)}")


def run_edit(arguments: argparse.Namespace, say: Say) -> None:
    if not arguments.edits:
        raise MuseumError("There is nothing to do. Add --rename OLD NEW or --remove CLASS.")
    read = identity(arguments.museum) if arguments.museum.exists() else None
    museum = load_task_museum(arguments.museum)
    for name, values in arguments.edits:
        museum = renamed_class(museum, *values) if name == "rename" else without_class(museum, *values)
    save_task_museum(museum, arguments.museum, read=read)
    say(f"{arguments.museum} now has: {', '.join(museum.classes) or 'no classes'}")


def class_folders(folder: Path, say: Say) -> list[Path]:
    """The subfolders of a folder, in order of their names, one for each class. Says what else it holds."""
    if not folder.is_dir():
        raise ConceptError(f"'{folder}' is not a folder. Give the folder that holds a subfolder for each class.")
    entries = sorted(folder.iterdir())
    found = [path for path in entries if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    if not found:
        raise ConceptError(f"There are no subfolders in '{folder}'. Put each class into its own folder.")
    if others := [path.name for path in entries if path not in found]:
        say(f"Not a class, so left out: {', '.join(others[:10])}{' …' * (len(others) > 10)}")
    return found


def read_classes(folders: Sequence[Path], base: Vision, say: Say) -> ClassPictures:
    """The pictures of these folders, one for each class. Says which files are left out, and why."""
    read = [each_picture(files_in(folder, say), _reader(base), say, root=folder) for folder in folders]
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor([len(found) for found in read]))
    pictures = [pixels for found in read for _, pixels in found]
    return ClassPictures(tuple(class_name(folder.name) for folder in folders), torch.stack(pictures), labels)


def _reader(base: Vision) -> Callable[[Path, Say], Tensor]:
    """Reads a file as the network sees it."""
    return lambda path, note: base.prepared(upright(path, note))


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=STARTER, help="'starter', or a vision transformer's folder (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")


def _open(arguments: argparse.Namespace) -> Vision:
    check_device(arguments.device)
    return open_vision(arguments.base, device=arguments.device)


def _opened(arguments: argparse.Namespace) -> tuple[TaskMuseum, Vision]:
    museum = load_task_museum(arguments.museum)
    base = _open(arguments)
    museum.check_over(base)
    return museum, base


def _check_output(path: Path | None, suffix: str) -> None:
    """Raise ConceptError for a name under which something else could be lost, and for a missing folder."""
    if path:
        check_names(path)
    if path and path.suffix.lower() != suffix:
        raise ConceptError(f"'{path}' must end in {suffix}.")
    if path and not path.parent.is_dir():
        raise ConceptError(f"There is no folder '{path.parent}'. Create it first.")


def _write(path: Path, content: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConceptError(f"'{path}' cannot be written: {error.strerror or error}.") from error


def _draw_confusion(result: Accuracies, classes: Sequence[str], path: Path) -> None:
    """Row: the class of the pictures; column: what they were taken for; the darker, the larger its share of the row."""
    names = [name for name in classes if name in result.confusion]
    columns = [name for name in classes if any(name in row for row in result.confusion.values())]
    shares = [
        [result.confusion[name].get(other, 0) / sum(result.confusion[name].values()) for other in columns]
        for name in names
    ]
    write_picture(confusion_sheet(shares, names, columns), path)
