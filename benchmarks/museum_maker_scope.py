"""What does MuseumMaker lose in our reconstruction, which changes cross-attention keys and values alone?

    python -m benchmarks.museum_maker_scope

The five built-in styles are learned in a row with `museum-maker` on all projections of every attention, as the paper
may mean. Only cross-attention keys and values read a word, so words are not layer-wise here, as for the method
`museum-maker-without-layer_wise` of `bench forgetting`, which changes keys and values alone. The text encoder stays as
it is.
Writes `benchmarks/results/museum_maker_scope.json`.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from clora_core.bench.forgetting import PLAIN, SAMPLES, SAMPLES_BETWEEN, TRACKS, in_order
from clora_core.bench.measuring import machine
from clora_core.bench.metrics import metrics
from clora_core.bench.runs import write_json
from clora_core.commands.progress import watched_bar
from clora_core.model.base import fingerprint
from clora_core.model.families.unet import UNet
from clora_core.model.projections import Place, Projection, Slot
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.exam import Examiner
from clora_core.starter.judge import load_judge

RESULT = Path(__file__).parent / "results/museum_maker_scope.json"
LAYERS = re.compile(r".*\.transformer_blocks\.\d+\.attn[12]\.to_([qkv]|out\.0)")
SHOWN = ("learned", "kept", "forgetting", "traits", "base_damage", "stored", "processor_seconds")


class EveryAttention(UNet):
    """Finds all layers of the attentions. The roles of what it finds mean nothing."""

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
        places = {}
        for module in filter(LAYERS.fullmatch, modules):
            rows, columns = shape(module)
            places[Projection(module, "key", (rows, columns))] = Place(module)
        return places


def starter() -> DiffusersBase:
    """The built-in model, with all of its attentions' layers as projections."""
    base, structure = open_base("starter"), EveryAttention()
    modules = dict(base.unet.named_modules())
    places = structure.find(modules, lambda name: modules[name].get_parameter("weight").shape)
    base.family = dataclasses.replace(base.family, structure=structure, reads="stream")
    base.slots = {place: Slot(modules[where.module], 0, place.shape[0]) for place, where in places.items()}
    base.fingerprint = fingerprint(base.family, base.slots)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed (0)")
    parser.add_argument("--steps", type=int, default=600, help="steps of each style (600)")
    parser.add_argument("--wordings", nargs="+", choices=("usual", "first"), default=["usual", "first"])
    arguments = parser.parse_args()
    names, recipe = in_order(TRACKS["styles"], arguments.seed % 2), starter_recipe("museum-maker")
    recipe = dataclasses.replace(recipe, layer_wise=False, seed=arguments.seed, steps=arguments.steps)
    examiner = Examiner(starter(), load_judge())
    before = examiner.plain_prompts(Museum(examiner.base.fingerprint), count=PLAIN)
    report = {"machine": machine(examiner.base.device), **vars(arguments), "runs": []}
    for wording in arguments.wordings:
        course = take_course(
            examiner,
            names,
            recipe,
            watched=watched_bar,
            samples=SAMPLES,
            samples_between=SAMPLES_BETWEEN,
            plain=PLAIN,
            wording=wording,
        )
        found = metrics(examiner, names, course, before, edits=0)
        report["runs"].append({"wording": wording} | {name: found[name] for name in SHOWN})
        write_json(RESULT, report)
        print(json.dumps(report["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
