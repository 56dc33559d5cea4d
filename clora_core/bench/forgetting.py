"""`bench forgetting`: every recipe learns the same sequences of subjects on the starter model.

Every run (recipe, order, seed) has its own file, so that a stopped benchmark can be resumed.
"""

import argparse
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..commands.progress import Say, watched_bar
from ..method.recipe import BASELINES, RECIPES
from ..museum.museum import Museum
from ..over_diffusers.base import open_base
from ..sheets import contact_sheet
from ..starter.course import take_course
from ..starter.exam import Examiner
from ..starter.judge import load_judge
from ..starter.layout import NAME
from ..starter.subjects import CROWD, IDENTITIES, SPARE_IDENTITIES, SPARE_STYLES, STYLES
from .forgetting_table import matrices_of, tables_of
from .methods import COMPARED, JOINT, check_method, is_joint, method_recipe
from .metrics import metrics
from .runs import Run, read_json, write_json
from .small_transformers import SMALL, open_small

TRACKS = {
    **{"identities": tuple(IDENTITIES), "styles": STYLES, "crowd": tuple(CROWD)},
    **{"spare-identities": tuple(SPARE_IDENTITIES), "spare-styles": SPARE_STYLES},  # to tune recipes on
}
SAMPLES, SAMPLES_BETWEEN, PLAIN, EDITS = 64, 12, 96, 12
QUICK: Mapping[str, Any] = {
    **{"concepts": 2, "seeds": [0], "orders": 1, "steps": 4},
    **{"samples": 4, "samples_between": 2, "plain": 6, "edits": 2},
}


def add(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "forgetting",
        help="what every recipe learns and forgets over a sequence of subjects",
        description="Learn the built-in characters or styles one after another with every recipe, in several orders "
        "and with several seeds, and measure what is recognized, forgotten and damaged. Takes hours on a CPU. After a "
        "stop, the same command resumes; finished runs are not repeated.",
        epilog="A method is the name of a recipe, optionally modified: c-lora*10 (ten times the protection; *0: none), "
        "sequential@0.006 (learning rate; of the word if nothing else is learned), c-lora+noun "
        "(words start from a noun that stays in the prompt), preservation+unrelated (the word is "
        "frozen: it stands for two nouns that have nothing to do with it), preservation+described (for some of its "
        "traits), "
        "c-lora+first (a style's word comes before the content), museum-maker-without-style_distillation (or without "
        "another of its terms, or without layer_wise). joint learns all subjects at once. "
        f"Recipes: {', '.join(RECIPES)}. Baselines: {', '.join(BASELINES)}.",
    )
    parser.add_argument("--methods", nargs="+", default=[*COMPARED, JOINT], help="recipes, optionally modified (all)")
    parser.add_argument(
        "--subjects",
        choices=list(TRACKS),
        default="identities",
        help="the subjects; spare ones are for tuning (identities)",
    )
    parser.add_argument(
        "--concepts", type=int, help="subjects in a sequence (all: 10 identities, 5 styles, 20 in a crowd, 3 spare)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    parser.add_argument("--orders", type=int, default=2, help="orders of the subjects; seeds alternate (2)")
    parser.add_argument(
        "--network",
        choices=[NAME, *SMALL],
        default=NAME,
        help="the built-in model, or a small transformer instead (starter)",
    )
    parser.add_argument("--steps", type=int, help="updates per concept (the recipe's)")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"pictures of a subject, learned and at the end ({SAMPLES})"
    )
    parser.add_argument("--samples-between", type=int, default=SAMPLES_BETWEEN, help=f"in between ({SAMPLES_BETWEEN})")
    parser.add_argument("--plain", type=int, default=PLAIN, help=f"plain prompts ({PLAIN})")
    parser.add_argument("--edits", type=int, default=EDITS, help=f"edited pictures per identity ({EDITS})")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        help="folder for forgetting.md, .json, .png, and the runs in forgetting/ (out)",
    )
    parser.add_argument("--quick", action="store_true", help="a quick test: two subjects, four steps")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if arguments.quick:
        vars(arguments).update(QUICK)
    for method in arguments.methods:
        check_method(method, arguments.subjects)  # before anything has run
    runs: Path = arguments.out / "forgetting"
    runs.mkdir(parents=True, exist_ok=True)
    base = open_base(NAME) if arguments.network == NAME else open_small(arguments.network)
    examiner = Examiner(base, load_judge())
    names = TRACKS[arguments.subjects][: arguments.concepts]
    before = examiner.plain_prompts(Museum(base.fingerprint), count=arguments.plain)
    # every method once before any runs again, so a stopped benchmark is fair
    for seed, method in itertools.product(arguments.seeds, arguments.methods):
        order = seed % arguments.orders
        recipe, wording = method_recipe(method, seed=seed, steps=arguments.steps)
        name = method.replace("*", "-times-").replace("@", "-rate-")  # valid in file names on every system
        opening = "" if arguments.network == NAME else f"{arguments.network}-"
        path = runs / f"{opening}{arguments.subjects}-{len(names)}x{recipe.steps}-{name}-order{order}-seed{seed}.json"
        if not path.exists():
            subjects = in_order(names, order)
            course = take_course(
                examiner,
                subjects,
                recipe,
                watched=watched_bar,
                samples=arguments.samples,
                samples_between=arguments.samples_between,
                plain=arguments.plain,
                wording=wording,
                together=is_joint(method),
            )
            result = metrics(examiner, subjects, course, before, edits=arguments.edits)
            result |= {"track": arguments.subjects, "method": method, "order": order, "seed": seed}
            result["network"] = arguments.network
            titles = ["real", *(f"after <{name}>" for name in subjects)]
            contact_sheet(course.rows(4), titles, columns=2).save(path.with_suffix(".jpg"), quality=80)
            write_json(path, result | {"recipe": recipe.to_json()})
        last = read_json(path)
        say(f"{method}, order {order}, seed {seed}: kept {last['kept']:.2f}, forgotten {last['forgetting']:.2f}")
    results = [result for result in map(read_json, sorted(runs.glob("*.json"))) if _as_long(result, arguments)]
    report = tables_of(results)
    write_json(arguments.out / "forgetting.json", results)
    (arguments.out / "forgetting.md").write_text(report + "\n", encoding="utf-8")
    matrices_of(results).save(arguments.out / "forgetting.png")
    say("\n" + report)
    say(f"\nFiles: {arguments.out / 'forgetting.md'}, .json and .png; the runs are in {runs}")


def _as_long(result: Run, arguments: argparse.Namespace) -> bool:
    """Whether a run has the requested network, length and steps. Others belong to another benchmark."""
    whole = len(TRACKS[result["track"]][: arguments.concepts])
    recipe, _ = method_recipe(result["method"], seed=0, steps=arguments.steps)
    asked = (arguments.network, whole, recipe.steps)
    return (result.get("network", NAME), len(result["subjects"]), result["recipe"]["steps"]) == asked


def in_order(names: Sequence[str], order: int) -> list[str]:
    """The names in the order with this number, always the same."""
    shuffled = list(names)
    random.Random(f"order {order}").shuffle(shuffled)
    return shuffled
