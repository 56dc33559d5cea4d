"""`bench search`: tune every recipe on characters or styles that `bench forgetting` does not use.

Every recipe has the same budget: three learning rates (of the word, if nothing else is learned), or three factors on
the default weights of its regularizers. The best trial has the highest share recognised at the end, minus what plain
prompts lost. A style can be recognised in pictures without content, so for styles, half of that share is the share of
prompted content. The command changes nothing: the chosen weights are in `recipe.py`, the rates in `starter/course.py`.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from ..commands.progress import Say, watched_bar
from ..measure import final_alignment, forgetting, initial_alignment
from ..method.recipe import Recipe
from ..museum.museum import Museum
from ..over_diffusers.base import open_base
from ..starter.course import starter_recipe, take_course
from ..starter.exam import Examiner, Wording, plain_prompts
from ..starter.judge import load_judge
from ..starter.subjects import SPARE_IDENTITIES, SPARE_STYLES
from .measuring import machine
from .methods import COMPARED, check_method
from .runs import Run, read_json, write_json

FACTORS: Mapping[str, Sequence[float]] = {
    "c-lora": (1, 3, 10),
    "c-lora-squares": (1, 3, 10),
    "c-lora-rows": (1, 10, 100),
    "ewc": (1, 10, 100),
    "ewc-lora": (1, 10, 100),
    "lwf": (0.3, 1, 3),
    "museum-maker": (0.3, 1, 3),
    "preservation": (0.3, 1, 3),
}
RATES = (2e-3, 6e-3, 1.8e-2)
WORD_RATES = (1.7e-2, 5e-2, 1.5e-1)
TRACKS = {"identities": tuple(SPARE_IDENTITIES), "styles": SPARE_STYLES}


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "search",
        help="tune every recipe, on other characters and styles than `bench forgetting`",
        description="Learn three spare characters or styles with every recipe, with three values of its weight, or of "
        "its learning rate if it has no weight. Takes hours on a CPU. After a stop, the same command resumes.",
    )
    parser.add_argument("--methods", nargs="+", choices=list(COMPARED), default=list(COMPARED), help="recipes (all)")
    parser.add_argument("--subjects", choices=list(TRACKS), default="identities", help="the subjects (identities)")
    parser.add_argument(
        "--wording",
        choices=get_args(Wording),
        default="usual",
        help="of the prompts; see +noun and +first in `bench forgetting` (usual)",
    )
    parser.add_argument("--steps", type=int, help="updates per concept (the recipe's)")
    parser.add_argument("--samples", type=int, default=32, help="pictures per subject (32)")
    parser.add_argument("--plain", type=int, default=48, help="plain prompts (48)")
    parser.add_argument("--out", type=Path, default=Path("out/search"), help="folder for trials and results")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    worded = "" if arguments.wording == "usual" else f"+{arguments.wording}"
    names = {method: f"{method}{worded}" for method in arguments.methods}
    for name in names.values():
        check_method(name, arguments.subjects)  # before anything has run
    trials: Path = arguments.out / "trials"
    trials.mkdir(parents=True, exist_ok=True)
    examiner = Examiner(open_base("starter"), load_judge())
    empty = Museum(examiner.base.fingerprint)
    before, _ = plain_prompts(examiner.base, empty, examiner.judge, count=arguments.plain)
    for method, name in names.items():
        for number in FACTORS.get(method, RATES if COMPARED[method].rank else WORD_RATES):
            recipe = _tried(method, number, arguments.steps)
            path = trials / f"{arguments.subjects}-{name}-{number:g}-{recipe.steps}.json"
            if not path.exists():
                course = take_course(
                    examiner,
                    TRACKS[arguments.subjects],
                    recipe,
                    watched=watched_bar,
                    samples=arguments.samples,
                    samples_between=arguments.samples,
                    plain=arguments.plain,
                    wording=arguments.wording,
                )
                result = {
                    "track": arguments.subjects,
                    "method": name,
                    "weight" if method in FACTORS else "learning_rate": number,
                    "learned": initial_alignment(course.alignment),
                    "kept": final_alignment(course.alignment),
                    "forgetting": forgetting(course.alignment),
                    "traits": final_alignment(course.attributes),
                    "base_damage": before - course.plain,
                    "norms": course.norms,
                    "recipe": recipe.to_json(),
                    "machine": machine(examiner.base.device),
                }
                write_json(path, result)
            result = read_json(path)
            say(f"{name} {number:g}: kept {result['kept']:.2f}, plain prompts lost {result['base_damage']:.2f}")
    results = list(map(read_json, sorted(trials.glob("*.json"))))
    write_json(arguments.out / "search.json", results)
    tables = [
        f"## {track.capitalize()}\n\n{search_table([result for result in results if result['track'] == track])}"
        for track in dict.fromkeys(result["track"] for result in results)
    ]
    (arguments.out / "search.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    say("\n" + "\n\n".join(tables))


def score(result: Run) -> float:
    """The best trial has the highest."""
    right = (result["kept"] + result["traits"]) / 2 if result["track"] == "styles" else result["kept"]
    return right - result["base_damage"]


def search_table(results: Sequence[Run]) -> str:
    """Markdown; the best of each recipe is in bold."""
    titles = ("recipe", "times its default, or rate", "learned", "kept", "forgotten", "traits", "plain prompts lost")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        best = max(own, key=score)
        for result in own:
            number = result.get("weight", result.get("learning_rate"))
            names = ("learned", "kept", "forgetting", "traits", "base_damage")
            cells = [f"{result[name]:.2f}" if name in result else "" for name in names]
            cell = f"**{number:g}**" if result is best else f"{number:g}"
            lines.append(f"| {method} | {cell} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tried(method: str, number: float, steps: int | None) -> Recipe:
    recipe = starter_recipe(method, **({"steps": steps} if steps else {}))
    if method not in FACTORS:
        return dataclasses.replace(recipe, **{"learning_rate" if recipe.rank else "token_learning_rate": number})
    weighted = [dataclasses.replace(r, weight=type(r)().weight * number) for r in recipe.regularizers]
    return dataclasses.replace(recipe, regularizers=tuple(weighted))
