"""Does `stop_when_learned` stop in time? Every subject is learned alone: with it, without it, and with default numbers.

    python -m benchmarks.stopping [--subjects ada bo cleo dex eve]

Its numbers were chosen on the spare characters kim, lou and max, so these are not among the subjects. Prints what was
decided, the share of pictures recognized as the subject, and the share of its traits.
Writes `benchmarks/results/stopping.json`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from clora_core.bench.measuring import machine
from clora_core.commands.progress import watched_bar
from clora_core.museum.museum import STOPPED
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.exam import Examiner
from clora_core.starter.judge import load_judge

RESULT = Path(__file__).parent / "results/stopping.json"
MOST = 800  # steps
SAMPLES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", default=["ada", "bo", "cleo", "dex", "eve"], help="characters")
    subjects = parser.parse_args().subjects
    examiner = Examiner(open_base("starter"), load_judge())
    longest = dataclasses.replace(starter_recipe("context-preservation", steps=MOST), schedule="constant")
    recipes = {
        "stop when learned": dataclasses.replace(longest, stop_when_learned=True),
        f"{MOST} steps": longest,
        "default": starter_recipe("context-preservation"),
    }
    rows = []
    for subject in subjects:
        for name, recipe in recipes.items():
            course = take_course(examiner, [subject], recipe, watched=watched_bar, samples=SAMPLES, plain=SAMPLES)
            evaluation, facts = course.evaluations[0][0], course.museum.exhibits[0].facts
            row = {"subject": subject, "recipe": name, "recognized": evaluation.alignment}
            row |= {"traits": evaluation.attributes, "plain prompts": course.plain}
            row |= {"processor seconds": course.processor_seconds, "decided": facts.get(STOPPED)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    report = {"machine": machine(examiner.base.device), "samples": SAMPLES, "rows": rows}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
