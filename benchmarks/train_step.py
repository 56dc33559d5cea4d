"""The cost of a training step inside ComfyUI, as a multiple of the same step over diffusers.

    python benchmarks/train_step.py [starter] [sd15]        with ComfyUI's own Python, and diffusers in it

Both sides run the engine's own `learn` in one process, and take turns after every step: on the starter, and on a
checkpoint file of SD1.5's real size with random weights, which each side opens with its own loader (12 GiB of memory).
Their losses must agree. Writes `benchmarks/results/train_step.json`.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.host.finding import import_host, required_host

RESULT = Path(__file__).parent / "results" / "train_step.json"
RANK, BATCH_SIZE, EXHIBITS_BEFORE = 16, 1, 1
REAL = (1, 2, 4, 4)  # SD1.5's channels at each resolution, in multiples of 320
Clocks = tuple[float, float]  # seconds, and seconds of processor time, which count no waiting for other programs


@dataclass(frozen=True)
class Amount:
    """steps: of each side. The first holds the preparation and does not count."""

    size_px: int
    steps: int


AMOUNTS = {"starter": Amount(64, 120), "sd15": Amount(256, 13)}


def main(names: list[str]) -> None:
    host = required_host()
    import_host(host)
    from clora_pack.nodes.host.differentiable import ordinary_tensors

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with ordinary_tensors():
        models = {name: compared_steps(name, host) for name in names}
    settings = {"rank": RANK, "batch_size": BATCH_SIZE, "exhibits before": EXHIBITS_BEFORE}
    report = {"machine": {**versions(), "load before": load}, "settings": settings, "models": models}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\nmodel      clock             ComfyUI   diffusers   ratio")
    for name, model in models.items():
        for clock, row in model["medians"].items():
            print(f"{name:10s} {clock:15s} {row['comfyui']:9.3f}   {row['diffusers']:9.3f}   {row['ratio']:5.3f}")


def compared_steps(name: str, host: Path) -> dict[str, Any]:
    """The median of both sides' steps by both clocks, and the ratio of these."""
    amount = AMOUNTS[name]
    sides = starters() if name == "starter" else checkpoints(host)
    times, losses = step_times(sides, amount)
    apart = max(abs(ours / theirs - 1) for ours, theirs in zip(losses["comfyui"], losses["diffusers"], strict=True))
    assert apart < 1e-2, f"The two sides did not do the same; their losses are {losses}."
    medians = {}
    for index, clock in enumerate(("seconds", "CPU seconds")):
        row = {side: statistics.median(step[index] for step in steps[1:]) for side, steps in times.items()}
        medians[clock] = {**row, "ratio": row["comfyui"] / row["diffusers"]}
    return {**asdict(amount), "losses differ by": apart, "medians": medians}


def step_times(
    sides: Mapping[str, Any], amount: Amount
) -> tuple[Mapping[str, list[Clocks]], Mapping[str, list[float]]]:
    """A real learning on each side: how long every step took, and its loss. Only one side runs at any time."""
    from clora_pack.clora_core.bench.measuring import random_museum
    from clora_pack.clora_core.learning.learn import Progress, learn
    from clora_pack.clora_core.method.recipe import recipe_named
    from clora_pack.clora_core.model.concept import Concept
    from clora_pack.clora_core.seeds import seeded

    pictures = torch.rand(2, 3, amount.size_px, amount.size_px, generator=seeded("train step")) * 2 - 1
    recipe = recipe_named("c-lora", rank=RANK, batch_size=BATCH_SIZE, steps=amount.steps)
    times: dict[str, list[Clocks]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    turns = {side: threading.Semaphore(0) for side in sides}

    def run(side: str, other: str) -> None:
        def wait() -> None:
            nonlocal begun
            turns[side].acquire()
            begun = time.perf_counter(), time.process_time()

        def report(progress: Progress) -> None:
            times[side].append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
            losses[side].append(progress.loss)
            turns[other].release()
            if progress.step < progress.steps:
                wait()

        begun: Clocks
        wait()
        try:
            museum = random_museum(sides[side], EXHIBITS_BEFORE, RANK)
            learn(sides[side], museum, [Concept("<bench>", pictures)], recipe, report=report)
        finally:
            turns[other].release(amount.steps)  # an end, good or bad, keeps nobody waiting

    with ThreadPoolExecutor(2) as pool:
        first, second = sides
        running = [pool.submit(run, first, second), pool.submit(run, second, first)]
        turns[first].release()
        for side in running:
            side.result()
    return times, losses


def starters() -> Mapping[str, Any]:
    """The starter on both sides."""
    from clora_pack.clora_core.over_diffusers.base import open_base
    from clora_pack.nodes.host.base import HostBase
    from clora_pack.nodes.host.starter import load_starter

    return {"comfyui": HostBase(*load_starter()), "diffusers": open_base("starter")}


def checkpoints(host: Path) -> Mapping[str, Any]:
    """A checkpoint file of SD1.5's real size, opened by ComfyUI's loader and by diffusers."""
    from clora_pack.clora_core.over_diffusers.base import open_base
    from clora_pack.nodes.host.base import HostBase

    from tests.host.checkpoints import open_checkpoint, write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write_checkpoint("sd15", path, REAL)
        ours = HostBase(*open_checkpoint(path))
        theirs = open_base(path, tokenizer=host / "comfy" / "sd1_tokenizer")
    assert ours.fingerprint == theirs.fingerprint
    return {"comfyui": ours, "diffusers": theirs}


def versions() -> dict[str, object]:
    """What it was measured on, and with which versions."""
    import comfyui_version
    import diffusers
    from clora_pack.clora_core.bench.measuring import machine

    versions = {"comfyui": comfyui_version.__version__, "diffusers": diffusers.__version__}
    return {**machine(torch.device("cpu")), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main(sys.argv[1:] or list(AMOUNTS))
