"""How strongly should `preservation` protect on transformers?

    python -m benchmarks.transformer_weights

Ten random characters, none of them a built-in one, are learned in a row on the small networks whose text has keys and
values of its own, with the recipe's weights multiplied by each factor. The built-in characters are measured by
`bench forgetting --network …`.
Writes `benchmarks/results/small_transformers/weights.json`.
"""

import json
from pathlib import Path
from unittest import mock

from clora_core.bench.measuring import machine
from clora_core.bench.metrics import metrics
from clora_core.bench.runs import write_json
from clora_core.bench.small_transformers import open_small
from clora_core.commands.progress import watched_bar
from clora_core.method.recipe import guarding
from clora_core.museum.museum import Museum
from clora_core.starter import exam, subjects
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.judge import load_judge

from .edited_prompts import characters

RESULT = Path(__file__).parent / "results/small_transformers/weights.json"
NETWORKS = ("qwen-image", "cosmos-predict2")
FACTORS = (0.3, 1.0, 3.0)
STEPS, EDITS, COUNTS = 300, 12, {"samples": 24, "samples_between": 2, "plain": 64}
REPORTED = ("learned", "kept", "forgetting", "traits", "edited_all", "base_damage")


def main() -> None:
    among = characters(10, "transformer weights")
    report = {"steps": STEPS, **COUNTS, "seed": 0, "rows": []}
    with mock.patch.dict(subjects.ALL_IDENTITIES, among), mock.patch.object(exam, "candidates", lambda name: among):
        for network in NETWORKS:
            base = open_small(network)
            examiner = exam.Examiner(base, load_judge())
            report["machine"] = machine(base.device)
            before = examiner.plain_prompts(Museum(base.fingerprint), count=COUNTS["plain"])
            for factor in FACTORS:
                recipe = guarding(starter_recipe("preservation", steps=STEPS), factor)
                course = take_course(examiner, list(among), recipe, watched=watched_bar, **COUNTS)
                found = metrics(examiner, list(among), course, before, edits=EDITS)
                row = {"network": network, "recipe": recipe.method, "factor": factor}
                report["rows"].append(row | {name: found[name] for name in REPORTED})
                write_json(RESULT, report)
                print(json.dumps(report["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
