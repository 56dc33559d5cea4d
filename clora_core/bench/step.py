"""`bench step`: the cost of a training step, and whether it grows with the museum.

The unit is the frozen model's own forward and backward pass (the gradient reaches only the word, as in textual
inversion). It is timed in turns with the real `learn`, on the same pictures in the same process.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..commands.progress import Say
from ..learning.learn import Progress, learn
from ..learning.lesson import Lesson
from ..learning.start import start
from ..method.objective import diffusion_loss
from ..method.recipe import Recipe, recipe_named
from ..model.concept import Concept
from ..museum.museum import Museum
from ..over_diffusers.base import DiffusersBase
from ..pictures import in_memory
from ..seeds import seeded
from .measuring import machine, random_museum
from .runs import write_json
from .shaped_bases import UNETS, shaped_base


def add(kinds: argparse._SubParsersAction) -> None:
    step = kinds.add_parser(
        "step",
        help="a training step against the frozen forward and backward pass",
        description="Time C-LoRA's training step on a UNet of a real model's shape with random weights, for museums of "
        "growing size, as a ratio to the frozen model's forward and backward pass in the same run; and its memory.",
    )
    step.add_argument("--family", choices=list(UNETS), default="sd15", help="the shape (sd15)")
    step.add_argument("--checkpointing", action="store_true", help="less memory for more time")
    step.add_argument("--past", type=int, nargs="+", default=[0, 1, 10, 100], help="exhibits already in the museum")
    step.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (256)")
    step.add_argument("--batch-size", type=int, default=1, help="pictures at once (1)")
    step.add_argument("--rank", type=int, default=16, help="rank of every delta (16)")
    step.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (3), with two timed steps")
    step.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    step.add_argument("--json", type=Path, help="write the numbers to this file")
    step.set_defaults(run=run_step)


def run_step(arguments: argparse.Namespace, say: Say) -> None:
    base = shaped_base(arguments.family, torch.device(arguments.device))
    numbers = {name: getattr(arguments, name) for name in ("rank", "batch_size", "checkpointing")}
    recipe = recipe_named("c-lora", steps=3, **numbers)
    pictures = torch.rand(2, 3, arguments.size, arguments.size, generator=seeded("bench pictures")) * 2 - 1
    concept = Concept("<bench>", in_memory(pictures))
    say(f"A UNet of the shape of {arguments.family}, {arguments.size} px, {base.device}.")
    say(", ".join(f"{name} {value}" for name, value in numbers.items()))
    frozen: list[float] = []
    learning: dict[int, list[float]] = {count: [] for count in arguments.past}
    museums = {count: random_museum(base, count, arguments.rank) for count in arguments.past}
    for _ in range(arguments.rounds):
        frozen += list(frozen_steps(base, concept, recipe))[1:]
        for count, museum in museums.items():
            learning[count] += learning_steps(base, museum, concept, recipe)[1:]
    unit = statistics.median(frozen)
    medians = {count: statistics.median(seconds) for count, seconds in learning.items()}
    rows = [{"past": count, "seconds": median, "ratio": median / unit} for count, median in medians.items()]
    say(f"\nfrozen forward + backward   {unit:8.3f} s\n")
    say("exhibits before    seconds    ratio")
    for row in rows:
        say(f"{row['past']:15d}   {row['seconds']:8.3f}   {row['ratio']:6.3f}")
    peak = memory_peak_gib(base.device)
    most = "unknown" if peak is None else f"at most {peak:.1f} GiB"
    say(f"\nMemory: {most}; the UNet's weights take {weights_gib(base):.1f} GiB.")
    if arguments.json:
        settings = numbers | {name: getattr(arguments, name) for name in ("family", "size", "rounds")}
        report = {"machine": machine(base.device), "settings": settings, "frozen_seconds": unit, "steps": rows}
        report |= {"memory_peak_gib": peak, "weights_gib": weights_gib(base)}
        write_json(arguments.json, report)


def frozen_steps(base: DiffusersBase, concept: Concept, recipe: Recipe) -> Iterator[float]:
    """Seconds of each forward and backward pass that trains the word alone."""
    lesson = Lesson.prepared(base, concept, recipe)
    trained = start(base, [concept], recipe, Museum(base.fingerprint))
    with base.learning(precision=recipe.precision, checkpointing=recipe.checkpointing):
        for number in range(recipe.steps):
            begun = _now(base.device)
            diffusion_loss(lesson.step(number, trained), base.schedule).backward()
            yield _now(base.device) - begun


def learning_steps(base: DiffusersBase, museum: Museum, concept: Concept, recipe: Recipe) -> list[float]:
    """Seconds between the updates of a real learning; 0 for the first, which includes the preparation."""
    times: list[float] = []

    def report(progress: Progress) -> None:
        times.append(_now(base.device))

    learn(base, museum, [concept], recipe, report=report)
    return [0.0, *(after - before for before, after in itertools.pairwise(times))]


def weights_gib(base: DiffusersBase) -> float:
    """Memory of the UNet's weights."""
    return sum(weight.numel() * weight.element_size() for weight in base.unet.parameters()) / 2**30


def memory_peak_gib(device: torch.device) -> float | None:
    """The peak memory on the GPU, or of this process. None on Windows without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
