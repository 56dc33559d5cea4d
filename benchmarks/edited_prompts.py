"""Why do edited prompts lose a concept, and where in the prompt is it?

    python -m benchmarks.edited_prompts

Three random characters that share traits, none of them a built-in one, are learned on the starter model: each alone
with `context-preservation`, to see which rows of a prompt its delta moves; and all in a row with `preservation`, also
without each of its parts, to see how often edited prompts keep them, for eight kinds of edits.
Writes `benchmarks/results/edited_prompts.json`.
"""

import dataclasses
import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch

from clora_core.bench.measuring import machine
from clora_core.commands.progress import watched_bar
from clora_core.method.recipe import Recipe
from clora_core.model.base import Base
from clora_core.museum.museum import Exhibit
from clora_core.over_diffusers.base import open_base
from clora_core.starter import exam, subjects
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.judge import load_judge
from clora_core.starter.world import IDENTITY

RESULT = Path(__file__).parent / "results/edited_prompts.json"
SHARED, GROUP, SAMPLES, EACH = 4, 3, 16, 6
PROTECTED, DEFAULT = starter_recipe("context-preservation"), starter_recipe("preservation")
VARIANTS: Mapping[str, Recipe] = {
    "context-preservation": PROTECTED,
    "without the fit": dataclasses.replace(DEFAULT, word_fit=0.0),
    "without the term": dataclasses.replace(DEFAULT, regularizers=()),
    "preservation": DEFAULT,
    "word-gated-onwards": starter_recipe("word-gated-onwards"),
}


def characters(count: int = 10, name: str = "dev identities 1") -> dict[str, dict[str, str]]:
    """Random characters in groups of three, which share four or more of nine traits. name: of the random numbers."""
    values = {name: sorted({traits[name] for traits in subjects.ALL_IDENTITIES.values()}) for name in IDENTITY}
    rng = random.Random(name)
    found: list[dict[str, str]] = []
    while len(found) < count:
        group = [{name: rng.choice(options) for name, options in values.items()}]
        while len(group) < GROUP:
            other = dict(group[0])
            for name in rng.sample(list(IDENTITY), len(IDENTITY) - SHARED):
                other[name] = rng.choice(values[name])
            if other not in group:
                group.append(other)
        found += group
    return {f"d{number}": traits for number, traits in enumerate(found[:count])}


def moved(base: Base, exhibit: Exhibit) -> list[float]:
    """How far the delta moves the keys and values of each row of the exhibit's prompt, over their size."""
    (states,) = base.encode_prompts([exhibit.prompt], [exhibit.token]).states
    shares = [
        (states @ delta.dense().T).norm(dim=1) / (states @ base.slots[projection].weight.T).norm(dim=1)
        for projection, delta in exhibit.deltas.items()
    ]
    return [round(share, 3) for share in torch.stack(shares).mean(0).tolist()]


def main() -> None:
    among = characters()
    names = list(among)[:GROUP]
    examiner = exam.Examiner(open_base("starter"), load_judge())
    counts = {"samples": SAMPLES, "samples_between": 2, "plain": 48}
    report: dict[str, object] = {"machine": machine(examiner.base.device), "alone": [], "in a row": []}
    with mock.patch.dict(subjects.ALL_IDENTITIES, among), mock.patch.object(exam, "candidates", lambda name: among):
        for name in names:
            museum = take_course(examiner, [name], PROTECTED, watched=watched_bar, **counts).museum
            row = {"character": name, "moved": moved(examiner.base, museum.exhibits[0])}
            _add(report, "alone", row | {"edited": examiner.edited(museum, name, each=EACH)})
        for variant, recipe in VARIANTS.items():
            course = take_course(examiner, names, recipe, watched=watched_bar, **counts)
            last = course.evaluations[-1]
            row = {"variant": variant, "at the end": statistics.fmean(each.alignment for each in last)}
            edited = [examiner.edited(course.museum, name, each=EACH) for name in names]
            kinds = {kind: statistics.fmean(each[kind] for each in edited) for kind in edited[0]}
            row |= {"edited": statistics.fmean(kinds.values()), "kinds": kinds, "plain prompts": course.plain}
            _add(report, "in a row", row)


def _add(report: dict, part: str, row: dict) -> None:
    report[part].append(row)
    print(json.dumps(row), flush=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
