"""`demo`: learn concepts one after another on the built-in model, and measure all of them after every step."""

import argparse
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image

from ..errors import Cancelled, MuseumError, RecipeError
from ..measure import final_alignment, forgetting, initial_alignment
from ..method.recipe import DEFAULT_METHOD, Recipe
from ..museum.file import check_names, read_header, save_museum
from ..museum.museum import Museum
from ..sheets import contact_sheet
from ..starter.course import PICTURES, PLAIN, Course, starter_recipe, take_course
from ..starter.exam import Evaluation, Examiner
from ..starter.judge import load_judge
from ..starter.layout import NAME
from .model import add_recipe, tell_of_baseline
from .progress import Say, watched_bar

CONCEPTS = ("gus", "hana", "ivo", "juno", "ada", "bo", "cleo", "dex", "eve", "finn")
QUICK = {DEFAULT_METHOD: {"batch_size": 8}}  # in half of the time; of c-lora, it kept less (docs/measurements.md)


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="try it on the built-in model: learn, save, measure forgetting",
        description="Learn made-up, easily confused characters one after another on the built-in model, and measure "
        "all of them after every step. At the same time, learn them without protection, for comparison. "
        "Downloads nothing.",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for museum, pictures and report")
    parser.add_argument("--concepts", type=int, default=3, help=f"number of concepts, 1 to {len(CONCEPTS)} (3)")
    add_recipe(parser)
    parser.add_argument(
        "--replace", action="store_true", help="replace a museum of other exhibits in --out; it is kept as ….backup"
    )
    parser.add_argument("--no-comparison", action="store_true", help="skip the run without protection")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    from ..over_diffusers.base import open_base

    if not 1 <= arguments.concepts <= len(CONCEPTS):
        raise RecipeError(f"The demo learns 1 to {len(CONCEPTS)} characters, not {arguments.concepts}.")
    subjects = CONCEPTS[: arguments.concepts]
    out: Path = arguments.out
    check_names(out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "museum.safetensors"
    if not arguments.replace:
        _check_own(target)
    examiner = Examiner(base := open_base(NAME), load_judge())
    recipe = starter_recipe(arguments.recipe, seed=arguments.seed, **QUICK.get(arguments.recipe, {}))
    tell_of_baseline(recipe.method, say)
    before, _ = examiner.plain_prompts(Museum(base.fingerprint), count=PLAIN)
    say(f"Teaching the starter model {len(subjects)} characters, one after another, from {PICTURES} pictures each.")
    say(f"Recipe {recipe.method}: rank {recipe.rank}, {recipe.steps} steps of {recipe.batch_size} pictures.\n")
    compared = None
    if not arguments.no_comparison and recipe.method != "sequential":
        same = {name: getattr(recipe, name) for name in ("learning_rate", "steps", "batch_size")}
        compared = starter_recipe("sequential", seed=arguments.seed, **same)
        say("At the same time, the same without protection (recipe sequential), for comparison.\n")
    with _beside(compared, subjects) as comparison:
        course = take_course(
            examiner,
            subjects,
            recipe,
            watched=watched_bar,
            evaluated=lambda evaluations: say(f"  recognized: {_shares(subjects, evaluations)}"),
        )
        museum = save_museum(course.museum, target, overwrite=True)
        report: dict[str, object] = {"concepts": [f"<{name}>" for name in subjects], "museum": str(museum)}
        report |= _numbers(course, before)
        courses = {recipe.method: course}
        if comparison:
            while wait([comparison], timeout=0.5).not_done:
                pass  # Windows hears Ctrl-C only between waits
            courses["sequential"] = unprotected = comparison.result()
            report["comparison"] = _numbers(unprotected, before)
            say(f"\nWithout protection, at the end: {_shares(subjects, unprotected.evaluations[-1])}")
    say("\n" + _table(courses, before))
    files = [museum, out / "demo.png"]
    _sheet(courses, subjects).save(files[-1])
    for target in filter(None, (out / "report.json", arguments.json)):
        target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        files.append(target)
    say("\nFiles: " + ", ".join(str(file) for file in files))
    say(f"Look inside the museum:   python -m clora_core show {museum}")
    prompt = f"a photo of <{subjects[0]}> at night"
    say(f'Use it in a prompt:       python -m clora_core view --base starter --museum {museum} --prompt "{prompt}"')


def _check_own(museum: Path) -> None:
    """Raise MuseumError for a museum that no demo has written."""
    if museum.exists() and (others := set(read_header(museum).words) - {f"<{name}>" for name in CONCEPTS}):
        raise MuseumError(f"{museum} holds {min(others)}, which is not the demo's. Choose another --out, or --replace.")


@contextmanager
def _beside(recipe: Recipe | None, subjects: Sequence[str]) -> Iterator[Future[Course] | None]:
    """The recipe's course, taken silently in another thread, on a model of its own. An error here stops it."""
    from ..over_diffusers.base import open_base

    if recipe is None:
        yield None
        return
    stopped, base = threading.Event(), open_base(NAME)

    def stop(*inputs: object) -> None:
        if stopped.is_set():
            raise Cancelled("The comparison was stopped.")

    base.unet.register_forward_pre_hook(stop)  # whether it learns or samples
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            yield pool.submit(
                take_course,
                Examiner(base, load_judge()),
                subjects,
                recipe,
                watched=lambda title, steps: nullcontext(lambda progress: None),
            )
        except BaseException:
            stopped.set()
            raise


def _shares(subjects: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    pairs = zip(subjects, evaluations, strict=False)
    return "  ".join(f"<{name}> {evaluation.alignment:.0%}" for name, evaluation in pairs)


def _sheet(courses: Mapping[str, Course], subjects: Sequence[str]) -> Image.Image:
    """One row per recipe and concept; columns: real pictures, then samples after each learned concept."""
    rows = [row for method, course in courses.items() for row in course.rows(6, f"{method}\n\n")]
    return contact_sheet(rows, ["real", *(f"after <{name}>" for name in subjects)], columns=3)


def _numbers(course: Course, before: float) -> dict[str, object]:
    return {
        "seconds": round(course.seconds + course.seconds_evaluating, 1),
        "alignment": course.alignment,
        "forgetting": forgetting(course.alignment),
        "attributes": course.attributes,
        "plain_prompts": {"before": before, "after": course.plain},
        "recipe": course.museum.exhibits[0].recipe.to_json(),
    }


def _table(courses: Mapping[str, Course], before: float) -> str:
    lines = [f"{'':24}" + "".join(f"{method:>14}" for method in courses)]
    for title, value in (
        ("recognized when learned", lambda course: f"{initial_alignment(course.alignment):.2f}"),
        ("recognized at the end", lambda course: f"{final_alignment(course.alignment):.2f}"),
        ("forgotten", lambda course: f"{forgetting(course.alignment):.2f}"),
        ("traits found (of real)", lambda course: f"{initial_alignment(course.attributes):.2f}"),
        ("plain prompts before", lambda course: f"{before:.2f}"),
        ("plain prompts after", lambda course: f"{course.plain:.2f}"),
        ("seconds", lambda course: f"{course.seconds + course.seconds_evaluating:.0f}"),
    ):
        lines.append(f"{title:24}" + "".join(f"{value(course):>14}" for course in courses.values()))
    return "\n".join(lines)
