"""`bench forgetting`: every recipe learns the same sequences of confusable characters on the starter model.

Each run (recipe, order, seed) is kept as a file of its own, so a stopped benchmark goes on where it was.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base_diffusers import open_base
from ..learn import Progress
from ..measure import drop_per_step, forgetting, kept, kernel_distance, learned, worst_drop
from ..museum import Museum
from ..recipe import RECIPES
from ..sheets import contact_sheet
from ..starter.course import Course, starter_recipe, take_course
from ..starter.exam import drawn, plain_prompts
from ..starter.judge import Judge, load_judge
from ..starter.subjects import IDENTITIES
from .progress import Bar, Say

LOOKS, PLAIN = 64, 96
QUICK: Mapping[str, Any] = {"concepts": 2, "seeds": [0], "orders": 1, "steps": 4, "looks": 4, "plain": 6}

# Name in a run's file → what the table calls it.
COLUMNS = {
    "learned": "recognised when learned",
    "kept": "recognised at the end",
    "forgetting": "forgotten",
    "worst_drop": "forgotten, from its best",
    "traits": "traits at the end",
    "distance": "A_mmd",
    "drift": "F_mmd",
    "base_damage": "plain prompts lost",
    "late_norm": "‖Δ‖ last / first",
    "seconds": "s per concept",
}


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "forgetting",
        help="what every recipe learns and forgets, over a sequence of characters",
        description="Let every recipe learn the built-in characters one after another, in several orders and with "
        "several seeds, and say what is recognised, forgotten and damaged. Hours on a CPU; it can be stopped and goes "
        "on where it was.",
    )
    parser.add_argument("--methods", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES), help="recipes (all)")
    parser.add_argument("--concepts", type=int, default=10, help="characters in a sequence (10)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    parser.add_argument("--orders", type=int, default=2, help="orders of the characters (2)")
    parser.add_argument("--steps", type=int, help="updates per concept (the recipe's)")
    parser.add_argument("--looks", type=int, default=LOOKS, help=f"pictures per look ({LOOKS})")
    parser.add_argument("--plain", type=int, default=PLAIN, help=f"prompts without a new word ({PLAIN})")
    parser.add_argument("--out", type=Path, default=Path("out/forgetting"), help="folder for runs and results")
    parser.add_argument("--quick", action="store_true", help="two characters, four steps: does everything work?")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if arguments.quick:
        vars(arguments).update(QUICK)
    runs: Path = arguments.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    base, judge = open_base("starter"), load_judge()
    results = []
    for method, order, seed in _planned(arguments):
        path = runs / f"{method}-order{order}-seed{seed}-{arguments.concepts}x{arguments.steps or 'own'}.json"
        if not path.exists():
            subjects = _ordered(arguments.concepts, order)
            numbers = {"steps": arguments.steps} if arguments.steps else {}
            recipe = starter_recipe(method, seed=seed, **numbers)
            looks, plain = arguments.looks, arguments.plain
            course = take_course(base, judge, subjects, recipe, watched=_watched, looks=looks, plain=plain)
            before, _ = plain_prompts(base, Museum(base.fingerprint), judge, count=plain)
            result = _measured(judge, subjects, course, before) | {"method": method, "order": order, "seed": seed}
            _sheet(subjects, course).save(path.with_suffix(".png"))
            path.write_text(json.dumps(result | {"recipe": recipe.to_json()}, indent=1), encoding="utf-8")
        results.append(json.loads(path.read_text(encoding="utf-8")))
        last = results[-1]
        say(f"{method}, order {order}, seed {seed}: kept {last['kept']:.2f}, forgotten {last['forgetting']:.2f}")
    table = table_of(results)
    (arguments.out / "forgetting.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "forgetting.md").write_text(table + "\n", encoding="utf-8")
    say("\n" + table)
    say(f"\nFiles: {arguments.out / 'forgetting.md'}, {arguments.out / 'forgetting.json'}, and each run's in {runs}")


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: per recipe the mean over its runs, ± half of a 95 % interval (1.96 standard errors)."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    lines = ["| | " + " | ".join(COLUMNS.values()) + " | runs |", "|---" * (len(COLUMNS) + 2) + "|"]
    for method in methods:
        own = [result for result in results if result["method"] == method]
        cells = [_with_interval([result[name] for result in own]) for name in COLUMNS]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def _with_interval(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean:.3g}" if math.isnan(half) else f"{mean:.3g} ± {half:.2g}"


def _planned(arguments: argparse.Namespace) -> Iterable[tuple[str, int, int]]:
    """Every recipe once before any is run a second time, so that a stopped benchmark is a fair one."""
    for seed in arguments.seeds:
        for order in range(arguments.orders):
            for method in arguments.methods:
                yield method, order, seed


def _ordered(count: int, order: int) -> list[str]:
    names = list(IDENTITIES)
    random.Random(f"order {order}").shuffle(names)
    return names[:count]


def _measured(judge: Judge, subjects: Sequence[str], course: Course, plain_before: float) -> dict[str, Any]:
    """One run in numbers. Distances are between the features that the judge reads attributes from."""
    first, last = [row[place] for place, row in enumerate(course.sights)], course.sights[-1]
    count = len(last[0].pictures)
    real = [_features(judge, drawn(name, count, seed=10_000)) for name in subjects]
    at_end = [_features(judge, sight.pictures) for sight in last]
    when_learned = [_features(judge, sight.pictures) for sight in first]
    drifts = [kernel_distance(one, other) for one, other in zip(when_learned[:-1], at_end[:-1], strict=True)]
    return {
        "subjects": list(subjects),
        "alignment": course.alignment,
        "learned": learned(course.alignment),
        "kept": kept(course.alignment),
        "forgetting": forgetting(course.alignment),
        "worst_drop": worst_drop(course.alignment),
        "drop_per_step": drop_per_step(course.alignment),
        "traits": statistics.fmean(sight.attributes for sight in last),
        "distance": statistics.fmean(kernel_distance(x, y) for x, y in zip(real, at_end, strict=True)),
        "drift": statistics.fmean(drifts) if drifts else 0.0,
        "base_damage": plain_before - course.plain,
        "norms": course.norms,
        "late_norm": course.norms[-1] / course.norms[0] if course.norms[0] else 0.0,
        "seconds": course.seconds / len(subjects),
    }


@torch.no_grad()
def _features(judge: Judge, pictures: Tensor) -> Tensor:
    return judge.trunk(pictures)


def _sheet(subjects: Sequence[str], course: Course):
    """Rows are concepts, columns the states after each task; real pictures stand first."""
    rows = []
    for place, name in enumerate(subjects):
        blocks: list[Tensor | None] = [drawn(name, 4, seed=0)]
        blocks += [row[place].pictures if place < len(row) else None for row in course.sights]
        rows.append((f"<{name}>", blocks))
    return contact_sheet(rows, ["real", *(f"after <{name}>" for name in subjects)], columns=2)


@contextmanager
def _watched(title: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    with Bar(title, steps) as bar:
        yield bar.report
