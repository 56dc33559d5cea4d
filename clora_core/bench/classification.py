"""`bench classification`: every method learns the same classes of pictures, task after task.

The protocol of CODA-Prompt's benchmark (arXiv:2211.13218), which C-LoRA's authors use: no task id at test time, and the
class order is that of the folder for seed 0, shuffled for other seeds. Every run has its own file, so that a stopped
benchmark can be resumed; `--resume` takes over the runs of an earlier one from its results.
"""

import argparse
import hashlib
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..classification.classify import reading, task_accuracies
from ..classification.heads import head_rows, logits
from ..classification.learn import ClassPictures
from ..classification.museum import TaskMuseum
from ..classification.recipe import Head
from ..classification.vision import STARTER, Vision, open_vision
from ..commands.classify import class_folders, read_classes
from ..commands.progress import Say
from ..errors import ConceptError
from ..measure import drop_per_step, final_alignment
from .class_methods import COMPARED, Memory, WholeNetwork, learn_task
from .measuring import machine
from .runs import Run, read_json, with_interval, write_json

SEARCH_SEED = 9  # a class order that no table uses
READ_WITH: tuple[Head, ...] = ("means", "lda")
VALIDATION = 4  # a search validates on every fourth training picture of a class, and reads no test picture


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "classification",
        help="what every method learns and forgets over tasks of classes",
        description="Learn the classes of a folder in tasks with every method, and test on all classes learned so far. "
        "The folder has train/ and test/, each with a subfolder per class; benchmarks/emoji_pictures.py and "
        "benchmarks/glyph_pictures.py make such folders. With --lists: the layout and lists of CODA-Prompt for "
        "ImageNet-R.",
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--lists", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="YAML lists of ImageNet-R")
    parser.add_argument("--base", default=STARTER, help="'starter', or a vision transformer's folder (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--methods", nargs="+", choices=list(COMPARED), default=list(COMPARED), help="methods (all)")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10], help="numbers of tasks (10)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each has its own class order (0 1 2)"
    )
    parser.add_argument(
        "--heads", nargs="+", choices=["linear", "imprint"], default=["linear", "imprint"], help="trained heads (both)"
    )
    parser.add_argument("--classes", type=int, help="use this many, chosen at random once (all)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over a task's pictures (10)")
    parser.add_argument("--rank", type=int, default=16, help="of the deltas (16)")
    parser.add_argument("--search", action="store_true", help="try four values per method, on another class order")
    parser.add_argument("--resume", type=Path, help="classification.json of earlier runs, which are not repeated")
    parser.add_argument("--out", type=Path, default=Path("out/classification"), help="folder for runs and tables")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    runs: Path = arguments.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    base = open_vision(arguments.base, device=arguments.device)
    train, test = read_pictures(arguments, base, say)
    if arguments.search:
        train, test = held_out(train)
    seeds = [SEARCH_SEED] if arguments.search else arguments.seeds
    settings = {"epochs": arguments.epochs, "rank": arguments.rank}
    every = {**settings, "classes": len(train.classes), "data": digest(base, train, test)}
    earlier: Sequence[Run] = json.loads(arguments.resume.read_text(encoding="utf-8")) if arguments.resume else ()
    results = {run_name(result): result for result in earlier}
    for tasks, seed, head, name in itertools.product(arguments.tasks, seeds, arguments.heads, arguments.methods):
        compared = COMPARED[name]
        for weight in compared.tried if arguments.search else (compared.weight,):
            own = {"method": name, "weight": weight, "tasks": tasks, "seed": seed, "head": head}
            title = run_name({**own, **every})
            path = runs / f"{title}.json"
            if title not in results and not path.exists():
                result = one_run(arguments.base, base, train, test, **own, **settings)
                write_json(path, {**own, **every, **result})
            results[title] = results.get(title) or read_json(path)
            say(f"{title}: {accuracy(results[title], head):.3f}")
    lines = ",\n".join(json.dumps(results[title], separators=(",", ":")) for title in sorted(results))
    (arguments.out / "classification.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    table = weights_table(list(results.values())) if arguments.search else tables(list(results.values()))
    (arguments.out / "classification.md").write_text(table + "\n", encoding="utf-8")
    say("\n" + table)


def one_run(
    opened: str,
    base: Vision,
    train: ClassPictures,
    test: ClassPictures,
    *,
    method: str,
    tasks: int,
    seed: int,
    head: Head,
    weight: float,
    epochs: int,
    rank: int,
) -> dict[str, Any]:
    """Learn all tasks and test after each.

    Returns read: head → all: the matrix of accuracies among all classes seen; rows: after each task, columns: the test
    pictures of each task. within: the same among each task's own classes. seconds: processor time per task.
    norms: of each task's deltas.
    """
    compared = COMPARED[method]
    if issubclass(compared.learning, WholeNetwork):
        base = open_vision(opened, device=str(base.device))  # its weights change
    names = class_order(train.classes, seed)
    parts = [names[place * len(names) // tasks : (place + 1) * len(names) // tasks] for place in range(tasks)]
    museum, memory, seconds, norms = TaskMuseum(base.fingerprint), Memory(), [], []
    heads: tuple[Head, ...] = (head, *READ_WITH)
    read: dict[Head, dict[str, list]] = {name: {"all": [], "within": []} for name in heads}
    for own in [names] if compared.joint else parts:
        began = time.process_time()
        recipe = compared.recipe(weight)
        loop = replace(recipe.learning, rank=rank, seed=seed)
        changes = {"learning": loop, "epochs": epochs, "head": head, "tasks": tasks}
        task = learn_task(compared, weight, base, museum, of_classes(train, own), memory, **changes)
        museum = museum.with_task(task)
        seconds.append(time.process_time() - began)
        norms.append(sum(float(delta.dense().norm() ** 2) for delta in task.deltas.values()) ** 0.5)
        tested = of_classes(test, list(museum.classes))
        with torch.no_grad(), reading(base, museum):
            features = base.all_features(tested.pictures)
        sizes = [len(part) for part in parts[: tasks if compared.joint else len(museum.tasks)]]
        for name in heads:
            everywhere, within = task_accuracies(logits(features, head_rows(museum, name)), tested.labels, sizes)
            read[name]["all"].append(rounded(everywhere))
            read[name]["within"].append(rounded(within))
    return {"read": read, "norms": rounded(norms), "seconds": rounded(seconds), "machine": machine(base.device)}


def rounded(values: Sequence[float]) -> list[float]:
    """With four digits."""
    return [float(f"{value:.4g}") for value in values]


def run_name(run: Run) -> str:
    """A name that differs between any two runs."""
    numbers = ("classes", "tasks", "seed", "head", "weight", "epochs", "rank", "data")
    return "-".join([run["method"], *(f"{run[n]:g}" if n == "weight" else f"{run[n]}" for n in numbers)])


def digest(base: Vision, *parts: ClassPictures) -> str:
    """The first digits of a hash of the network and all pictures and classes."""
    whole = hashlib.sha256(base.fingerprint.digest.encode())
    for part in parts:
        whole.update(json.dumps([part.classes, part.labels.tolist()]).encode())
        whole.update(part.pictures.numpy().tobytes())
    return whole.hexdigest()[:8]


def class_order(classes: Sequence[str], seed: int) -> list[str]:
    """The given order for seed 0; for other seeds shuffled, as the reference code does it."""
    names = list(classes)
    if seed:
        random.Random(seed).shuffle(names)
    return names


def of_classes(pictures: ClassPictures, classes: Sequence[str]) -> ClassPictures:
    """The pictures of these classes, with labels in their order."""
    places = {pictures.classes.index(name): place for place, name in enumerate(classes)}
    kept = torch.tensor([label in places for label in pictures.labels.tolist()])
    labels = torch.tensor([places[label] for label in pictures.labels[kept].tolist()])
    return ClassPictures(tuple(classes), pictures.pictures[kept], labels)


def held_out(train: ClassPictures) -> tuple[ClassPictures, ClassPictures]:
    """The pictures to train on, and every fourth of each class to validate on, without classes of fewer than four."""
    counts = torch.bincount(train.labels).tolist()
    train = of_classes(train, [name for name, count in zip(train.classes, counts, strict=True) if count >= VALIDATION])
    number = torch.zeros_like(train.labels)
    for label in train.labels.unique():
        own = train.labels == label
        number[own] = torch.arange(int(own.sum()))
    validating = number % VALIDATION == VALIDATION - 1
    rest, held = (
        ClassPictures(train.classes, train.pictures[mask], train.labels[mask]) for mask in (~validating, validating)
    )
    return rest, held


def read_pictures(arguments: argparse.Namespace, base: Vision, say: Say) -> tuple[ClassPictures, ClassPictures]:
    """The pictures to train and to test on."""
    if arguments.lists:
        train, test = (read_list(path, arguments.pictures, base) for path in arguments.lists)
    else:
        train, test = (
            read_classes(class_folders(arguments.pictures / part, say), base, say) for part in ("train", "test")
        )
    if train.classes != test.classes:
        raise ConceptError("The classes to train on and to test on are not the same.")
    if arguments.classes:
        drawn = sorted(random.Random(0).sample(train.classes, min(arguments.classes, len(train.classes))))
        train, test = of_classes(train, drawn), of_classes(test, drawn)
    return train, test


def read_list(path: Path, folder: Path, base: Vision) -> ClassPictures:
    """The pictures of a YAML list of CODA-Prompt: `data` has the paths …/<class>/<file>, `targets` the labels."""
    import yaml

    from ..picture_files import upright

    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict) or not {"data", "targets"} <= entries.keys():
        raise ConceptError(f"'{path}' must have the lists 'data' and 'targets', as CODA-Prompt's lists have.")
    pictures, labels, names = [], [], {}
    for text, target in zip(entries["data"], entries["targets"], strict=True):
        name, file = Path(text).parts[-2:]
        if ".." in (name, file):
            raise ConceptError(f"'{text}' in {path} leads out of '{folder}'.")
        pictures.append(base.prepared(upright(folder / name / file)))
        labels.append(int(target))
        names[int(target)] = name
    order = sorted(names)
    places = torch.tensor([order.index(label) for label in labels])
    return ClassPictures(tuple(names[label] for label in order), torch.stack(pictures), places)


def accuracy(run: Run, head: Head) -> float:
    """A_N with this head."""
    return final_alignment(run["read"][head]["all"])


def tables(results: Sequence[Run]) -> str:
    """Markdown: a table per number of tasks and trained head, with means over seeds and 95 % intervals.

    The difference to c-lora is that of runs with the same class order.
    """
    titles = (
        "method",
        "runs",
        "A_N",
        "A_N - c-lora's",
        "F_N",
        "within its task: A_N",
        "F_N",
        "means: A_N",
        "lda: A_N",
        "‖Δ‖ last / first",
        "CPU s per task",
    )
    texts = []
    alike = ("data", "classes", "epochs", "rank", "tasks", "head")
    for kind in sorted({tuple(result[name] for name in alike) for result in results}):
        same = [result for result in results if tuple(result[name] for name in alike) == kind]
        tasks, head = same[0]["tasks"], same[0]["head"]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        ours = {result["seed"]: accuracy(result, head) for result in same if result["method"] == "c-lora"}
        for method in COMPARED:
            if not (own := [result for result in same if result["method"] == method]):
                continue
            read = [result["read"][head] for result in own]
            joint = COMPARED[method].joint
            apart = [accuracy(result, head) - ours[result["seed"]] for result in own if result["seed"] in ours]
            cells = [
                with_interval([accuracy(result, head) for result in own]),
                with_interval(apart, sign="+") if apart and method != "c-lora" else "",
                "" if joint else with_interval([drop_per_step(matrices["all"]) for matrices in read]),
                with_interval([final_alignment(matrices["within"]) for matrices in read]),
                "" if joint else with_interval([drop_per_step(matrices["within"]) for matrices in read]),
                *(with_interval([accuracy(result, name) for result in own]) for name in READ_WITH),
            ]
            last = [result["norms"][-1] / result["norms"][0] for result in own if result["norms"][0]]
            cells += [with_interval(last) if last and not joint else ""]
            cells += [f"{sum(sum(r['seconds']) for r in own) / (len(own) * tasks):.3g}"]
            lines.append(f"| {method} | {len(own)} | " + " | ".join(cells) + " |")
        title = f"## Data {same[0]['data']}: {same[0]['classes']} classes, {tasks} tasks, {head} head"
        texts.append(title + "\n\n" + "\n".join(lines))
    return "\n\n".join(texts)


def weights_table(results: Sequence[Run]) -> str:
    """Markdown: A_N for each value of a method; the best is in bold."""
    lines = ["| method, head | A_N of each value |", "|---|---|"]
    for method, head in dict.fromkeys((result["method"], result["head"]) for result in results):
        own = [result for result in results if (result["method"], result["head"]) == (method, head)]
        marks = {result["weight"]: accuracy(result, head) for result in own}
        best = max(marks, key=lambda weight: marks[weight])
        cells = [f"**{w:g}: {m:.3f}**" if w == best else f"{w:g}: {m:.3f}" for w, m in marks.items()]
        lines.append(f"| {method}, {head} | {', '.join(cells)} |")
    return "\n".join(lines)
