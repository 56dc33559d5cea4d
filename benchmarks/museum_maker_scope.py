"""What does MuseumMaker lose in our reconstruction, which changes cross-attention keys and values alone?

    python -m benchmarks.museum_maker_scope

The five built-in styles are learned in a row with `museum-maker`, on cross-attention keys and values, and on all
projections of every attention, as the paper may mean. Words are not layer-wise here, since only keys and values read a
word. Measured as in `bench forgetting`; the text encoder stays as it is.
Writes `benchmarks/results/museum_maker_scope.json`.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
SCOPES: Mapping[str, str] = {
    "cross-attention: keys, values": r"attn2\.to_[kv]",
    "all attention: queries, keys, values, outputs": r"attn[12]\.to_([qkv]|out\.0)",
}
SHOWN = ("learned", "kept", "forgetting", "traits", "base_damage", "stored", "processor_seconds")


@dataclass(frozen=True)
class Chosen(UNet):
    """Finds the attentions' layers whose names fit. The roles of what it finds mean nothing."""

    layers: str = ""

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
        fitting = re.compile(rf".*\.transformer_blocks\.\d+\.{self.layers}")
        places = {}
        for module in filter(fitting.fullmatch, modules):
            rows, columns = shape(module)
            places[Projection(module, "key", (rows, columns))] = Place(module)
        return places


def starter_with(layers: str) -> DiffusersBase:
    """The built-in model, with these layers as its projections."""
    base = open_base("starter")
    structure = Chosen(layers=layers)
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
    names = in_order(TRACKS["styles"], arguments.seed % 2)
    report = {"machine": machine(open_base("starter").device), **vars(arguments), "runs": []}
    for wording in arguments.wordings:
        for scope, layers in SCOPES.items():
            examiner = Examiner(starter_with(layers), load_judge())
            before = examiner.plain_prompts(Museum(examiner.base.fingerprint), count=PLAIN)
            course = take_course(
                examiner,
                names,
                starter_recipe(
                    "museum-maker", kind="style", seed=arguments.seed, steps=arguments.steps, layer_wise=False
                ),
                watched=watched_bar,
                samples=SAMPLES,
                samples_between=SAMPLES_BETWEEN,
                plain=PLAIN,
                wording=wording,
            )
            found = metrics(examiner, names, course, before, edits=0)
            row = {"scope": scope, "wording": wording} | {name: found[name] for name in SHOWN}
            report["runs"].append(row)
            write_json(RESULT, report)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
