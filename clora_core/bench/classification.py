"""`bench classification`: every method learns the same classes of pictures, task after task.

The protocol of CODA-Prompt's benchmark (arXiv:2211.13218), which C-LoRA's authors use: no task id at test, class order
as in the folder for seed 0 and shuffled for others. Each run is a file of its own, so a stopped benchmark goes on.
"""

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classification.classify import reading
from ..classification.heads import head_rows, logits
from ..classification.learn import ClassPictures
from ..classification.museum import TaskMuseum
from ..classification.recipe import Head
from ..classification.vision import STARTER, Vision, open_vision
from ..commands.classify import class_folders, read_classes
from ..commands.progress import Say
from ..errors import ConceptError
from ..measure import drop_per_step, final_alignment
from .class_methods import COMPARED, Memory, WholeNetwork, learned
from .measuring import machine
from .runs import with_interval

SEARCH_SEED = 9  # a class order that no table has
READ_WITH: tuple[Head, ...] = ("means", "lda")
VALIDATION = 4  # in a search, every fourth picture of a class tests, and no test picture is read


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "classification",
        help="what every method learns and forgets, over tasks of classes",
        description="Let every method learn the classes of a folder in tasks, and test on all classes seen so far. The "
        "folder has train/ and test/, each with a subfolder for each class; benchmarks/emoji_pictures.py and "
        "benchmarks/glyph_pictures.py make two. With --lists, the layout and the lists of CODA-Prompt for ImageNet-R.",
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--lists", type=Path, nargs=2, metavar=("TRAIN", "TEST"), help="YAML lists of ImageNet-R")
    parser.add_argument("--base", default=STARTER, help="'starter', or a vision transformer's folder (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--methods", nargs="+", choices=list(COMPARED), default=list(COMPARED), help="methods (all)")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10], help="numbers of tasks (10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds, which are class orders (0 1 2)")
    parser.add_argument(
        "--heads", nargs="+", choices=["linear", "imprint"], default=["linear", "imprint"], help="trained heads (both)"
    )
    parser.add_argument("--classes", type=int, help="only that many, drawn at random once (all)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over a task's pictures (10)")
    parser.add_argument("--rank", type=int, default=16, help="of the deltas (16)")
    parser.add_argument("--search", action="store_true", help="try four numbers of each method, on another class order")
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
    results = []
    for tasks in arguments.tasks:
        for seed in seeds:
            for head in arguments.heads:
                for name in arguments.methods:
                    compared = COMPARED[name]
                    for weight in compared.tried if arguments.search else (compared.weight,):
                        numbers = f"{tasks}-{seed}-{head}-{weight:g}-{arguments.epochs}-{arguments.rank}"
                        path = runs / f"{name}-{numbers}{'-search' if arguments.search else ''}.json"
                        if not path.exists():
                            own = {"method": name, "weight": weight, "tasks": tasks, "seed": seed, "head": head}
                            settings = {"epochs": arguments.epochs, "rank": arguments.rank}
                            found = one_run(arguments.base, base, train, test, **own, **settings)
                            content = json.dumps({**own, **settings, **found}, indent=1)
                            path.write_text(content + "\n", encoding="utf-8")
                        results.append(json.loads(path.read_text(encoding="utf-8")))
                        matrix = results[-1]["read"][head]["all"]
                        say(f"{name} {numbers}: {final_alignment(matrix):.3f}")
    (arguments.out / "classification.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = search_table(results) if arguments.search else tables(results)
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

    read: head → "all" and "within" (the task's own classes), matrices of the share recognised: row = after which task,
    column = which task's test pictures. seconds: of the processor, per task.
    """
    compared = COMPARED[method]
    if issubclass(compared.learning, WholeNetwork):
        base = open_vision(opened, device=str(base.device))  # its weights change
    names = class_order(train.classes, seed)
    parts = [names[place * len(names) // tasks : (place + 1) * len(names) // tasks] for place in range(tasks)]
    museum, memory, seconds, norms = TaskMuseum(base.fingerprint), Memory(), [], []
    heads: tuple[Head, ...] = (head, *READ_WITH)
    read: dict[str, dict[str, list[list[float]]]] = {name: {"all": [], "within": []} for name in heads}
    for own in [names] if compared.joint else parts:
        began = time.process_time()
        recipe = compared.recipe(weight)
        loop = replace(recipe.learning, rank=rank, seed=seed)
        changes = {"learning": loop, "epochs": epochs, "head": head, "tasks": tasks}
        task = learned(compared, weight, base, museum, chosen(train, own), memory, **changes)
        museum = museum.with_task(task)
        seconds.append(time.process_time() - began)
        norms.append(sum(float(delta.dense().norm() ** 2) for delta in task.deltas.values()) ** 0.5)
        seen = chosen(test, list(museum.classes))
        with torch.no_grad(), reading(base, museum):
            features = base.all_features(seen.pictures)
        bounds = [len(part) for part in parts[: tasks if compared.joint else len(museum.tasks)]]
        for name in heads:
            everywhere, within = shares(logits(features, head_rows(museum, name)), seen.labels, bounds)
            read[name]["all"].append(everywhere)
            read[name]["within"].append(within)
    return {"read": read, "norms": norms, "seconds": seconds, "machine": machine(base.device)}


def shares(values: Tensor, labels: Tensor, sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """The share recognised of each task's pictures, among all classes and among the task's own.

    values: logits (n, classes). labels: (n,). sizes: classes per task.
    """
    everywhere, within, start = [], [], 0
    for size in sizes:
        own = (labels >= start) & (labels < start + size)
        everywhere.append(float((values[own].argmax(1) == labels[own]).float().mean()))
        local = values[own][:, start : start + size].argmax(1) + start
        within.append(float((local == labels[own]).float().mean()))
        start += size
    return everywhere, within


def class_order(classes: Sequence[str], seed: int) -> list[str]:
    """As they are for seed 0; shuffled as the reference code does it for others."""
    names = list(classes)
    if seed:
        random.Random(seed).shuffle(names)
    return names


def chosen(pictures: ClassPictures, classes: Sequence[str]) -> ClassPictures:
    """The pictures of these classes, with labels in their order."""
    places = {pictures.classes.index(name): place for place, name in enumerate(classes)}
    kept = torch.tensor([label in places for label in pictures.labels.tolist()])
    labels = torch.tensor([places[label] for label in pictures.labels[kept].tolist()])
    return ClassPictures(tuple(classes), pictures.pictures[kept], labels)


def held_out(train: ClassPictures) -> tuple[ClassPictures, ClassPictures]:
    """Training pictures, and every fourth of each class to test on. Classes with fewer pictures are left out."""
    counts = torch.bincount(train.labels)
    number = torch.zeros_like(train.labels)
    for label in range(len(train.classes)):
        own = train.labels == label
        number[own] = torch.arange(int(own.sum()))
    testing = number % VALIDATION == VALIDATION - 1
    enough = [name for name, count in zip(train.classes, counts.tolist(), strict=True) if count >= VALIDATION]
    parts = [ClassPictures(train.classes, train.pictures, train.labels)] * 2
    halves = []
    for part, mask in zip(parts, (~testing, testing), strict=True):
        kept = mask & (counts[part.labels] >= VALIDATION)
        renumbered = torch.tensor([enough.index(part.classes[label]) for label in part.labels[kept].tolist()])
        halves.append(ClassPictures(tuple(enough), part.pictures[kept], renumbered))
    return halves[0], halves[1]


def read_pictures(arguments: argparse.Namespace, base: Vision, say: Say) -> tuple[ClassPictures, ClassPictures]:
    """The pictures to train and to test on."""
    if arguments.lists:
        train, test = (listed(path, arguments.pictures, base) for path in arguments.lists)
    else:
        train, test = (read_classes(class_folders(arguments.pictures / part), base, say) for part in ("train", "test"))
    if train.classes != test.classes:
        raise ConceptError("The classes to train on and to test on are not the same.")
    if arguments.classes:
        drawn = sorted(random.Random(0).sample(train.classes, min(arguments.classes, len(train.classes))))
        train, test = chosen(train, drawn), chosen(test, drawn)
    return train, test


def listed(path: Path, folder: Path, base: Vision) -> ClassPictures:
    """The pictures of a YAML list as CODA-Prompt has them: `data`, paths …/<class>/<file>, and `targets`, numbers."""
    import yaml

    from ..picture_files import upright

    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table for each number of tasks and each trained head; means over seeds with 95 % intervals."""
    titles = ("method", "A_N", "F_N", "within its task", "means: A_N", "lda: A_N", "‖Δ‖ last / first", "CPU s per task")
    texts = []
    for tasks, head in dict.fromkeys((result["tasks"], result["head"]) for result in results):
        same = [result for result in results if (result["tasks"], result["head"]) == (tasks, head)]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for method in dict.fromkeys(result["method"] for result in same):
            own = [result for result in same if result["method"] == method]
            read = {name: [result["read"][name] for result in own] for name in (head, *READ_WITH)}
            joint = COMPARED[method].joint
            cells = [
                with_interval([final_alignment(each["all"]) for each in read[head]]),
                "" if joint else with_interval([drop_per_step(each["all"]) for each in read[head]]),
                with_interval([final_alignment(each["within"]) for each in read[head]]),
                *(with_interval([final_alignment(each["all"]) for each in read[name]]) for name in READ_WITH),
            ]
            last = [result["norms"][-1] / result["norms"][0] for result in own if result["norms"][0]]
            cells += [with_interval(last) if last and not joint else ""]
            cells += [f"{sum(sum(r['seconds']) for r in own) / (len(own) * tasks):.3g}"]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        seeds = sorted({result["seed"] for result in same})
        texts.append(f"## {tasks} tasks, {head} head, seeds {seeds}\n\n" + "\n".join(lines))
    return "\n\n".join(texts)


def search_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what each number of a method gives; the best is in bold."""
    lines = ["| method, head | A_N of each number |", "|---|---|"]
    for method, head in dict.fromkeys((result["method"], result["head"]) for result in results):
        own = [result for result in results if (result["method"], result["head"]) == (method, head)]
        marks = {result["weight"]: final_alignment(result["read"][head]["all"]) for result in own}
        best = max(marks, key=lambda weight: marks[weight])
        cells = [f"**{w:g}: {m:.3f}**" if w == best else f"{w:g}: {m:.3f}" for w, m in marks.items()]
        lines.append(f"| {method}, {head} | {', '.join(cells)} |")
    return "\n".join(lines)
