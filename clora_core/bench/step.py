"""`bench step`: the cost of a training step, whether it grows with the museum, and how it compares with others' code.

The unit is the frozen model's own forward and backward pass (the gradient reaches only the word, as in textual
inversion). All sides (`peers.py`) train on the same pictures in one process and take turns, in another order in every
round. Ratios compare a side with the floor of the same round. Peak memory is that of a process which runs one side
alone, with its museum; on a GPU, what torch had allocated at most while the side ran.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..commands.progress import Say
from ..method.recipe import Recipe
from ..model.concept import Concept
from ..pictures import in_memory
from ..seeds import seeded
from .measuring import machine, memory_peak_gib, random_museum
from .peers import Side, Work
from .runs import write_json
from .shaped_bases import UNETS, shaped_base

STEPS = 3  # of a side in a round; the first holds the preparation and does not count
FLOOR = "floor"
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
SETTINGS = ("shape", "size", "past", "rank", "batch_size", "precision", "checkpointing")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def add(kinds: argparse._SubParsersAction) -> None:
    step = kinds.add_parser(
        "step",
        help="a training step against the frozen forward and backward pass, and against other implementations",
        description="Time C-LoRA's training step on a UNet of a real model's shape with random weights, for museums of "
        "growing size, as a ratio to the frozen model's forward and backward pass in the same run; and its memory.",
    )
    step.add_argument("--shape", choices=list(UNETS), default="sd15", help="of the UNet (sd15)")
    step.add_argument("--peers", action="store_true", help="also other recipes, peft's LoRA and a plain C-LoRA")
    step.add_argument("--checkpointing", action="store_true", help="less memory for more time")
    step.add_argument("--precision", choices=list(DTYPES), default="fp32", help="of weights and computation (fp32)")
    step.add_argument("--past", type=int, nargs="+", default=[0, 10, 100], help="exhibits already in the museum")
    step.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (256)")
    step.add_argument("--batch-size", type=int, default=1, help="pictures at once (1)")
    step.add_argument("--rank", type=int, default=16, help="rank of every delta (16)")
    step.add_argument("--rounds", type=int, default=3, help="rounds of each side (3), with two timed steps")
    step.add_argument("--memory", action="store_true", help="on a CPU, also each side's peak memory (slow)")
    step.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    step.add_argument("--json", type=Path, help="write the numbers to this file")
    step.add_argument("--only", help=argparse.SUPPRESS)  # one side, whose peak memory is printed
    step.set_defaults(run=run_step)


def run_step(arguments: argparse.Namespace, say: Say) -> None:
    device = torch.device(arguments.device)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    if arguments.only:
        museums = [past for past in arguments.past if arguments.only.endswith(f", {past} earlier")]
        work = work_of(settings | {"past": museums}, device)
        work = replace(work, recipe=replace(work.recipe, steps=2))  # with the optimizer's state of the first
        work.sides(peers=True)[arguments.only](lambda loss: None)
        say(str(memory_peak_gib(device)))
        return
    sides = work_of(settings, device).sides(peers=arguments.peers)
    say(", ".join(f"{name} {value}" for name, value in settings.items()) + f", {device}\n")
    rows = measured(sides, device, arguments.rounds)
    for row in rows if arguments.memory and device.type == "cpu" else ():
        row["peak_gib"] = peak_alone(settings | {"device": device}, row["side"])
    say(table_of_sides(rows))
    if arguments.json:
        settings["rounds"] = arguments.rounds
        write_json(arguments.json, {"machine": machine(device), "settings": settings, "sides": rows})


def work_of(settings: Mapping[str, Any], device: torch.device) -> Work:
    """What all sides do. settings: a value for each of SETTINGS."""
    base = shaped_base(settings["shape"], device, DTYPES[settings["precision"]])
    numbers = {name: settings[name] for name in ("rank", "batch_size", "precision", "checkpointing")}
    pictures = torch.rand(2, 3, settings["size"], settings["size"], generator=seeded("bench pictures")) * 2 - 1
    museums = {count: random_museum(base, count, settings["rank"]) for count in settings["past"]}
    return Work(base, Concept("<bench>", in_memory(pictures)), Recipe(steps=STEPS, **numbers), museums)


def measured(sides: Mapping[str, Side], device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """What `summary` makes of so many rounds, for each side. One of them is the floor."""
    found = [timed_round(sides, device, number) for number in range(rounds)]
    return [{"side": name, **summary([r[name] for r in found], [r[FLOOR] for r in found])} for name in sides]


def timed_round(sides: Mapping[str, Side], device: torch.device, number: int) -> dict[str, dict[str, Any]]:
    """Side → what `timed` found, in an order of the round's own."""
    names, found = list(sides), {}
    for place in torch.randperm(len(names), generator=seeded("order of sides", number)).tolist():
        found[names[place]] = timed(sides[names[place]], device)
    return found


def timed(side: Side, device: torch.device) -> dict[str, Any]:
    """The median of a side's steps by each clock, its last loss and, on a GPU, its peak memory."""
    times: list[list[float]] = []
    losses: list[float] = []
    if device.type == "cuda":
        gc.collect()  # what the side before has left
        torch.cuda.reset_peak_memory_stats(device)

    def report(loss: float) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append([clock() for clock in CLOCKS.values()])
        losses.append(loss)

    side(report)
    steps = [[after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(times)]
    took = {clock: median(step[place] for step in steps) for place, clock in enumerate(CLOCKS)}
    peak = {"peak_gib": memory_peak_gib(device)} if device.type == "cuda" else {}
    return {**took, "loss": losses[-1], **peak}


def summary(own: Sequence[Mapping[str, Any]], floor: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, of the times and of their ratios to the floor of the same round; and all CPU ratios.

    Other values are those of the first round.
    """
    ratios = {clock: [a[clock] / b[clock] for a, b in zip(own, floor, strict=True)] for clock in CLOCKS}
    times = {clock: median(row[clock] for row in own) for clock in CLOCKS}
    medians = {f"{clock}_ratio": median(ratios[clock]) for clock in CLOCKS}
    return {**own[0], **times, **medians, "cpu_seconds_ratios": ratios["cpu_seconds"]}


def peak_alone(settings: Mapping[str, Any], name: str) -> float:
    """The peak memory, in GiB, of a process that runs one side."""
    command = [sys.executable, "-m", "clora_core", "bench", "step", "--only", name]
    for option, value in settings.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        command += [] if value is False else [f"--{option.replace('_', '-')}", *map(str, values)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def table_of_sides(rows: Sequence[Mapping[str, Any]]) -> str:
    """As Markdown. In brackets: times the floor, which is the first row."""
    units = {"seconds": "s", "cpu_seconds": "CPU s", "peak_gib": "GiB"}
    columns = [column for column in units if rows[0].get(column)]
    lines = [["", *(units[column] for column in columns)], ["---"] * (len(columns) + 1)]
    for row in rows:
        ratios = [row.get(f"{column}_ratio") or row[column] / rows[0][column] for column in columns]
        cells = [f"{row[column]:.3g} ({ratio:.2f})" for column, ratio in zip(columns, ratios, strict=True)]
        lines.append([row["side"], *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
