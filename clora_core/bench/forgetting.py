"""`bench forgetting`: every recipe learns the same sequences of subjects on the starter model.

Each run (recipe, order, seed) is kept as a file of its own, so a stopped benchmark goes on where it was.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..commands.progress import Say, watched_bar
from ..method.recipe import BASELINES, RECIPES
from ..museum.museum import Museum
from ..over_diffusers.base import open_base
from ..sheets import contact_sheet
from ..starter.course import Course, take_course
from ..starter.exam import Examiner, drawn, plain_prompts
from ..starter.judge import load_judge
from ..starter.subjects import CROWD, IDENTITIES, STYLES
from .forgetting_table import matrices_of, tables_of
from .marks import marks
from .methods import COMPARED, JOINT, check_method, is_joint, varied
from .runs import Run

TRACKS = {"identities": tuple(IDENTITIES), "styles": STYLES, "crowd": tuple(CROWD)}
LOOKS_AT_ENDS, LOOKS_BETWEEN, PLAIN, DRESSED = 64, 12, 96, 12
QUICK: Mapping[str, Any] = {
    **{"concepts": 2, "seeds": [0], "orders": 1, "steps": 4},
    **{"looks": 4, "looks_between": 2, "plain": 6, "dressed": 2},
}


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "forgetting",
        help="what every recipe learns and forgets, over a sequence of subjects",
        description="Let every recipe learn the built-in characters, or styles, one after another, in several orders "
        "and with several seeds, and say what is recognised, forgotten and damaged. Hours on a CPU; it can be stopped "
        "and goes on where it was; runs that are in the folder stay as they are.",
        epilog="A method is a recipe's name, or a change of it: c-lora*10 (protection times ten; *0: none), "
        "sequential@0.006 (that learning rate), c-lora+noun (words start from a noun that stays in the prompt), "
        "c-lora+first (a style's word stands before what is on the picture), "
        "museum-maker-without-style_distillation (or another of its terms, or layer_wise: a word of one part); joint "
        f"learns all at once. Recipes: {', '.join(RECIPES)}. Baselines: {', '.join(BASELINES)}.",
    )
    parser.add_argument("--methods", nargs="+", default=[*COMPARED, JOINT], help="recipes, or changes of them (all)")
    parser.add_argument(
        "--subjects", choices=list(TRACKS), default="identities", help="what is learned; a crowd is twenty (identities)"
    )
    parser.add_argument(
        "--concepts", type=int, help="subjects in a sequence (all: 10 identities, 5 styles, 20 in a crowd)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    parser.add_argument("--orders", type=int, default=2, help="orders of the subjects, which seeds take in turn (2)")
    parser.add_argument("--steps", type=int, help="updates per concept (the recipe's)")
    parser.add_argument("--looks", type=int, default=LOOKS_AT_ENDS, help=f"pictures per look ({LOOKS_AT_ENDS})")
    parser.add_argument("--looks-between", type=int, default=LOOKS_BETWEEN, help=f"the others ({LOOKS_BETWEEN})")
    parser.add_argument("--plain", type=int, default=PLAIN, help=f"prompts without a new word ({PLAIN})")
    parser.add_argument("--dressed", type=int, default=DRESSED, help=f"edited pictures per identity ({DRESSED})")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        help="folder for forgetting.md, .json, .png, and the runs in forgetting/ (out)",
    )
    parser.add_argument("--quick", action="store_true", help="two subjects, four steps: does everything work?")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if arguments.quick:
        vars(arguments).update(QUICK)
    for method in arguments.methods:
        check_method(method, arguments.subjects)  # before anything has run
    runs: Path = arguments.out / "forgetting"
    runs.mkdir(parents=True, exist_ok=True)
    base = open_base("starter")
    examiner = Examiner(base, load_judge())
    names = TRACKS[arguments.subjects][: arguments.concepts]
    before = plain_prompts(base, Museum(base.fingerprint), examiner.judge, count=arguments.plain)
    for method, order, seed in _planned(arguments):
        recipe, wording = varied(method, seed=seed, steps=arguments.steps)
        named = method.replace("*", "-times-").replace("@", "-rate-")  # what file names may hold everywhere
        path = runs / f"{arguments.subjects}-{len(names)}x{recipe.steps}-{named}-order{order}-seed{seed}.json"
        if not path.exists():
            subjects = in_order(names, order)
            course = take_course(
                examiner,
                subjects,
                recipe,
                watched=watched_bar,
                looks=arguments.looks,
                looks_between=arguments.looks_between,
                plain=arguments.plain,
                wording=wording,
                together=is_joint(method),
            )
            result = marks(examiner, subjects, course, before, dressed=arguments.dressed)
            result |= {"track": arguments.subjects, "method": method, "order": order, "seed": seed}
            _sheet(subjects, course).save(path.with_suffix(".jpg"), quality=80)
            path.write_text(json.dumps(result | {"recipe": recipe.to_json()}, indent=1), encoding="utf-8")
        last = json.loads(path.read_text(encoding="utf-8"))
        say(f"{method}, order {order}, seed {seed}: kept {last['kept']:.2f}, forgotten {last['forgetting']:.2f}")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*.json"))]
    results = [result for result in found if _as_long(result, arguments)]
    report = tables_of(results)
    (arguments.out / "forgetting.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "forgetting.md").write_text(report + "\n", encoding="utf-8")
    matrices_of(results).save(arguments.out / "forgetting.png")
    say("\n" + report)
    say(f"\nFiles: {arguments.out / 'forgetting.md'}, .json and .png, and each run's in {runs}")


def _as_long(result: Run, arguments: argparse.Namespace) -> bool:
    """Whether a run has the length and the steps that are asked for; others are of another benchmark."""
    whole = len(TRACKS[result["track"]][: arguments.concepts])
    recipe, _ = varied(result["method"], seed=0, steps=arguments.steps)
    return (len(result["subjects"]), result["recipe"]["steps"]) == (whole, recipe.steps)


def _planned(arguments: argparse.Namespace) -> Iterable[tuple[str, int, int]]:
    """Every recipe once before any is run a second time, so that a stopped benchmark is a fair one."""
    for seed in arguments.seeds:
        for method in arguments.methods:
            yield method, seed % arguments.orders, seed


def in_order(names: Sequence[str], order: int) -> list[str]:
    """The names in the order of that number, the same every time."""
    shuffled = list(names)
    random.Random(f"order {order}").shuffle(shuffled)
    return shuffled


def _sheet(subjects: Sequence[str], course: Course):
    """Rows are concepts, columns the states after each task; real pictures stand first."""
    rows = []
    for place, name in enumerate(subjects):
        blocks: list[Tensor | None] = [drawn(name, 4, seed=0)]
        blocks += [row[place].pictures if place < len(row) else None for row in course.sights]
        rows.append((f"<{name}>", blocks))
    return contact_sheet(rows, ["real", *(f"after <{name}>" for name in subjects)], columns=2)
