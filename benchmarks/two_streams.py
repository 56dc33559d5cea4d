"""Which projections of a network with two streams should carry the deltas?

    python -m benchmarks.two_streams

Three built-in characters are learned in a row on the small Qwen-Image, each time with other projections, and measured
as in `bench forgetting --network qwen-image`. Deltas on the picture's side meet every prompt's picture, so word-gated
recipes, which act on rows of text, have none.
Writes `benchmarks/results/small_transformers/two_streams.json`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clora_core.bench.measuring import machine
from clora_core.bench.metrics import metrics
from clora_core.bench.small_transformers import SmallBase, open_small
from clora_core.commands.progress import watched_bar
from clora_core.model.families.blocks import Blocks
from clora_core.model.projections import Place, Projection
from clora_core.museum.museum import Museum
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.exam import Examiner
from clora_core.starter.judge import load_judge

RESULT = Path(__file__).parent / "results/small_transformers/two_streams.json"
SUBJECTS = ("ada", "bo", "cleo")
STEPS, SAMPLES, PLAIN, EDITS = 300, 32, 64, 12
TEXT, PICTURE = ("add_k_proj", "add_v_proj"), ("to_k", "to_v")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "text: keys, values": TEXT,
    "text: queries, keys, values": ("add_q_proj", *TEXT),
    "text: queries, keys, values, outputs": ("add_q_proj", *TEXT, "to_add_out"),
    "text: keys, values; picture: queries": (*TEXT, "to_q"),
    "text and picture: keys, values": (*TEXT, *PICTURE),
    "picture: keys, values": PICTURE,
}
READS = {"to_q": "picture", **dict.fromkeys(PICTURE, "picture"), **dict.fromkeys(("add_q_proj", *TEXT), "text")}
REPORTED = ("learned", "kept", "forgetting", "traits", "edited", "base_damage", "processor_seconds")


@dataclass(frozen=True)
class Chosen(Blocks):
    """Finds the attention's layers of these names. The roles of what it finds mean nothing."""

    layers: tuple[str, ...] = ()

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
        places = {}
        for module in modules:
            attention, _, layer = module.rpartition(".")
            if layer in self.layers:
                rows, columns = shape(module)
                path = f"{attention}.{READS.get(layer, layer)}.{layer}"  # what reads the same has one second moment
                places[Projection(path, "key_value", (rows, columns))] = Place(module)
        return places


def network(layers: tuple[str, ...]) -> SmallBase:
    """The small Qwen-Image, with these layers as its projections."""
    base = open_small("qwen-image")
    structure = base.family.structure
    assert isinstance(structure, Blocks)
    family = replace(base.family, structure=Chosen(structure.paths, structure.layouts, layers=layers))
    return SmallBase(replace(base.small, family=family), base.network, base.basis)


def main() -> None:
    rows = []
    for choice, layers in CHOICES.items():
        base = network(layers)
        examiner = Examiner(base, load_judge())
        before = examiner.plain_prompts(Museum(base.fingerprint), count=PLAIN)
        on_text = not set(layers) & set(PICTURE) and "to_q" not in layers
        for method in ("context-preservation", "sequential", *["word-gated-onwards"] * on_text):
            recipe = starter_recipe(method, steps=STEPS)
            course = take_course(
                examiner, SUBJECTS, recipe, watched=watched_bar, samples=SAMPLES, samples_between=4, plain=PLAIN
            )
            found = metrics(examiner, SUBJECTS, course, before, edits=EDITS)
            row = {"projections": choice, "recipe": method} | {name: found[name] for name in REPORTED}
            rows.append(row)
            print(json.dumps(row), flush=True)
            report = {"machine": machine(base.device), "subjects": SUBJECTS, "steps": STEPS, "samples": SAMPLES}
            RESULT.write_text(json.dumps(report | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
