"""The cost of learning a task of classes on a ViT-B/16, as the museum grows, beside peft's LoRA.

    pip install peft
    PYTHONPATH=. python benchmarks/class_cost.py

The network has ViT-B/16's real shape and random weights. All sides train rank 16 on the queries, keys and values of all
layers, and a linear head, on the same pictures with AdamW; they take turns, and steps are counted in seconds of
processor time. peft's LoRA is measured alone, as for the first task or with earlier ones merged, and with all 20 tasks'
adapters active. Peak memory is that of a process which measures one side alone. Writes
`benchmarks/results/class_cost.json`.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTModel

from clora_core.bench.measuring import machine, memory_peak_gib, random_deltas
from clora_core.bench.training import built_with_seed
from clora_core.classification.learn import ClassPictures, TaskLearning
from clora_core.classification.museum import Task, TaskMuseum
from clora_core.classification.recipe import METHODS
from clora_core.classification.vision import Vision, attention_projections, layer_path
from clora_core.pictures import as_floats
from clora_core.seeds import seeded

RESULT = Path(__file__).parent / "results" / "class_cost.json"
RANK, BATCH, STEPS, CLASSES, SIDE_PX, TASKS = 16, 2, 4, 8, 224, (1, 10, 20)
Side = Callable[[], list[float]]  # → seconds of each step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each measurement (2)")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one side, whose peak memory is printed
    arguments = parser.parse_args()
    sides: dict[str, Callable[[], Side]] = {f"c-lora, task {task}": lambda task=task: ours(task) for task in TASKS}
    sides |= {"peft, one LoRA": lambda: peft_lora(1), f"peft, {TASKS[-1]} LoRAs": lambda: peft_lora(TASKS[-1])}
    if arguments.only:
        sides[arguments.only]()()
        print(memory_peak_gib(torch.device("cpu")))
        return
    peaks = {name: peak_gib(name) for name in sides}
    built = {name: build() for name, build in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _, (name, side) in itertools.product(range(arguments.rounds), built.items()):
        seconds[name] += side()[1:]  # the first holds the preparation
    rows = [{"side": name, "step": round(median(seconds[name]), 3), "peak_gib": peaks[name]} for name in sides]
    settings = {"rank": RANK, "batch_size": BATCH, "side_px": SIDE_PX, "rounds": arguments.rounds}
    report = {"machine": machine(torch.device("cpu")), "settings": settings, "sides": rows}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{row['side']:20s} {row['step']:8.3f} s {row['peak_gib']:6.2f} GiB" for row in rows))


def ours(task: int) -> Side:
    """C-LoRA's learning of the museum's n-th task."""
    middle = torch.full((3,), 0.5)
    base = Vision(network(), side=SIDE_PX, mean=middle, deviation=middle)
    loop = replace(METHODS["c-lora"].learning, rank=RANK, batch_size=BATCH)
    recipe = replace(METHODS["c-lora"], learning=loop, epochs=1, head="linear")
    museum = TaskMuseum(base.fingerprint)
    for number in range(task - 1):
        museum = museum.with_task(random_task(base, number))
    new = ClassPictures(tuple(f"new {label}" for label in range(CLASSES)), *pictures())

    def steps() -> list[float]:
        times = [time.process_time()]
        TaskLearning(base, museum, new, recipe).run(report=lambda progress: times.append(time.process_time()))
        return [after - before for before, after in itertools.pairwise(times)]

    return steps


def peft_lora(adapters: int) -> Side:
    """peft's LoRA, with that many adapters active, of which the last is trained."""
    vit = network()
    names = {id(module): name for name, module in vit.named_modules()}
    targets = [names[id(module)] for module in attention_projections(vit).values()]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    model = get_peft_model(vit, config, adapter_name="0")
    for number in range(1, adapters):
        model.add_adapter(str(number), config)
    model.base_model.set_adapter([str(number) for number in range(adapters)])  # type: ignore[operator]
    for name, weight in model.named_parameters():
        weight.requires_grad_(f".{adapters - 1}." in name and "lora_" in name)
    head = torch.nn.Linear(vit.config.hidden_size, CLASSES)
    trained = [weight for weight in [*model.parameters(), *head.parameters()] if weight.requires_grad]
    values, labels = pictures()

    def steps() -> list[float]:
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        times = [time.process_time()]
        for chosen in torch.arange(len(labels)).split(BATCH):
            features = model(pixel_values=as_floats(values[chosen])).last_hidden_state[:, 0]
            F.cross_entropy(head(features), labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.process_time())
        return [after - before for before, after in itertools.pairwise(times)]

    return steps


def network() -> ViTModel:
    """A frozen ViT-B/16 with random weights."""
    vit = built_with_seed(lambda: ViTModel(ViTConfig(), add_pooling_layer=False), seed=0)
    return cast(ViTModel, vit.eval().requires_grad_(False))


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, as bytes (n, 3, side, side), and labels (n,)."""
    count = BATCH * STEPS
    shape = (count, 3, SIDE_PX, SIDE_PX)
    return torch.randint(256, shape, generator=seeded("pictures")).to(torch.uint8), torch.arange(count) % CLASSES


def random_task(base: Vision, number: int) -> Task:
    """An earlier task with random small deltas."""
    rng = seeded("task", number)
    deltas = random_deltas(base.slots, RANK, rng)
    inputs = {layer_path(projection): torch.eye(projection.shape[1]) for projection in base.slots}
    rows = torch.zeros(CLASSES, base.width + 1)
    names = tuple(f"{number} {label}" for label in range(CLASSES))
    counts = torch.ones(CLASSES, dtype=torch.long)
    return Task(names, deltas, rows, rows[:, 1:], counts, torch.eye(base.width), inputs, METHODS["c-lora"])


def peak_gib(name: str) -> float:
    """The peak memory of a process that measures one side."""
    found = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True)
    return round(float(found.stdout.split()[-1]), 2)


if __name__ == "__main__":
    main()
