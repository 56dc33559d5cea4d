"""`bench search`: the numbers of every recipe, looked for on characters or styles that `bench forgetting` leaves out.

Every recipe gets the same budget: three values of its learning rate (the word's, where nothing else is learned) or,
where it has regularizers, of their weights, each times its regularizer's default, whatever the recipe has by now. The
best has the highest share recognised at the end minus what plain prompts lost; for a style, which can be recognised in
pictures of nothing, half of that share is the share of what was asked for in it. Nothing is set by this command:
`recipe.py` holds the weights that were chosen, `starter/course.py` the rates.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..commands.progress import Say, watched_bar
from ..measure import final_alignment, forgetting, initial_alignment
from ..method.recipe import Recipe
from ..museum.museum import Museum
from ..over_diffusers.base import open_base
from ..starter.course import starter_recipe, take_course
from ..starter.exam import Examiner, Wording, plain_prompts
from ..starter.judge import load_judge
from ..starter.subjects import REHEARSAL, SPARE_STYLES
from .measuring import machine
from .methods import COMPARED, check_method

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
TRACKS = {"identities": tuple(REHEARSAL), "styles": SPARE_STYLES}


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "search",
        help="looks for the numbers of every recipe, on other characters and styles than `bench forgetting`",
        description="Let every recipe learn three spare characters, or styles, with three values of its weight, or of "
        "its learning rate where it has no weight. Hours on a CPU; it can be stopped and goes on where it was.",
    )
    parser.add_argument("--methods", nargs="+", choices=list(COMPARED), default=list(COMPARED), help="recipes (all)")
    parser.add_argument("--subjects", choices=list(TRACKS), default="identities", help="what is learned (identities)")
    parser.add_argument(
        "--wording",
        choices=get_args(Wording),
        default="usual",
        help="of prompts, as +noun and +first in `bench forgetting` (usual)",
    )
    parser.add_argument("--steps", type=int, help="updates per concept (the recipe's)")
    parser.add_argument("--looks", type=int, default=32, help="pictures per look (32)")
    parser.add_argument("--plain", type=int, default=48, help="prompts without a new word (48)")
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
                    looks=arguments.looks,
                    looks_between=arguments.looks,
                    plain=arguments.plain,
                    wording=arguments.wording,
                )
                found = {
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
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            result = json.loads(path.read_text(encoding="utf-8"))
            say(f"{name} {number:g}: kept {result['kept']:.2f}, plain prompts lost {result['base_damage']:.2f}")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(trials.glob("*.json"))]
    (arguments.out / "search.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    tables = [
        f"## {track.capitalize()}\n\n{table_of([result for result in results if result['track'] == track])}"
        for track in dict.fromkeys(result["track"] for result in results)
    ]
    (arguments.out / "search.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    say("\n" + "\n\n".join(tables))


def worth(result: Mapping[str, Any]) -> float:
    """What the best trial has most of."""
    right = (result["kept"] + result["traits"]) / 2 if result["track"] == "styles" else result["kept"]
    return right - result["base_damage"]


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; the best of each recipe is in bold."""
    titles = ("recipe", "times its default, or rate", "learned", "kept", "forgotten", "traits", "plain prompts lost")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        best = max(own, key=worth)
        for result in own:
            number = result.get("weight", result.get("learning_rate"))
            names = ("learned", "kept", "forgetting", "traits", "base_damage")
            cells = [f"{result[name]:.2f}" if name in result else "" for name in names]
            shown = f"**{number:g}**" if result is best else f"{number:g}"
            lines.append(f"| {method} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tried(method: str, number: float, steps: int | None) -> Recipe:
    recipe = starter_recipe(method, **({"steps": steps} if steps else {}))
    if method not in FACTORS:
        return dataclasses.replace(recipe, **{"learning_rate" if recipe.rank else "token_learning_rate": number})
    weighted = [dataclasses.replace(r, weight=type(r)().weight * number) for r in recipe.regularizers]
    return dataclasses.replace(recipe, regularizers=tuple(weighted))
