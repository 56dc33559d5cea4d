"""C-LoRA's λ: one number for a whole museum, as in the paper, or a new one for every concept, as in `c-lora`?

    python -m benchmarks.fixed_lambda --seeds 0 1 2

`c-lora` learns the ten built-in characters with the λ that it finds for the second one, kept for all others. Its own λ
was measured by `bench forgetting`, whose orders and seeds these are (`benchmarks/results/forgetting`). Writes
`benchmarks/results/fixed_lambda.json` after every run.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from clora_core.bench.forgetting import EDITS, PLAIN, SAMPLES, SAMPLES_BETWEEN, TRACKS, in_order
from clora_core.bench.measuring import machine
from clora_core.bench.metrics import metrics
from clora_core.bench.runs import read_json, write_json
from clora_core.commands.progress import watched_bar
from clora_core.method.regularizers import self_regularization
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.exam import Examiner
from clora_core.starter.judge import load_judge

RESULT = Path(__file__).parent / "results/fixed_lambda.json"
SHOWN = ("learned", "kept", "forgetting", "traits", "edited", "base_damage", "norms")
Weight = Callable[..., float]


def fixed(weight: Weight, found: list[float]) -> Weight:
    """`relative_weight`, which adds every λ to `found` and returns the first one."""

    def first(*arguments: object) -> float:
        found.append(weight(*arguments))
        return found[0]

    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    arguments = parser.parse_args()
    examiner = Examiner(open_base("starter"), load_judge())
    before = examiner.plain_prompts(Museum(examiner.base.fingerprint), count=PLAIN)
    report = read_json(RESULT) if RESULT.exists() else {"machine": machine(examiner.base.device), "runs": []}
    for seed in set(arguments.seeds) - {run["seed"] for run in report["runs"]}:
        names, found = in_order(TRACKS["identities"], seed % 2), []
        weight = fixed(self_regularization.relative_weight, found)
        with mock.patch.object(self_regularization, "relative_weight", weight):
            course = take_course(
                examiner,
                names,
                starter_recipe("c-lora", seed=seed),
                watched=watched_bar,
                samples=SAMPLES,
                samples_between=SAMPLES_BETWEEN,
                plain=PLAIN,
            )
        result = metrics(examiner, names, course, before, edits=EDITS)
        row = {"seed": seed, "its own would be": [value / found[0] for value in found]}
        report["runs"].append(row | {name: result[name] for name in SHOWN})
        write_json(RESULT, report)
        print(json.dumps(report["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
