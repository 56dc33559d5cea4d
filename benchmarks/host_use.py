"""What the pack costs ComfyUI in daily use: its start, /object_info, opening workflows, a first picture, and memory.

    python benchmarks/host_use.py [start] [object_info] [opening] [first_picture] [memory]

with ComfyUI's own Python, and for `opening` playwright in it and Chromium. Real servers run with and without the pack
and are measured in turns. Memory is that of the server's process: every Run samples with another seed, and every second
one changes the strength of the museum, or of the stock LoRA beside it, so that its patches are made anew. ComfyUI keeps
every prompt and its results in a history of up to 10,000 Runs, so each side is also measured with that cleared.
Writes its parts into `benchmarks/results/host_use.json`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.host.finding import ROOT, host_python, import_host, required_host
from tests.host.prompts import chain, loaded, node, shown, starter
from tests.host.server import Prompt, Server

RESULT = Path(__file__).parent / "results" / "host_use.json"
WITHOUT = "--disable-all-custom-nodes"
TEMPLATES = ("1-three-concepts", "2-load-a-museum", "7-own-pictures-sd15")
EXHIBITS, RANK = 6, 8
MUSEUM = "use"
TEXT = "a photo of <past-0> and <past-5>"
AUTOMATIC = {"steps": 0, "learning_rate": 0.0, "rank": 0, "batch_size": 0, "forgetting_weight": 1.0}
OPEN = """async (workflow) => {
    const drawn = () => new Promise(requestAnimationFrame), began = performance.now()
    await app.loadGraphData(workflow)
    await drawn()
    await drawn()
    return (performance.now() - began) / 1000
}"""
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--runs", type=int, default=500, help="that memory is measured over, after a tenth as many")
    arguments = parser.parse_args()
    host = required_host()
    sys.argv = sys.argv[:1]
    import_host(host)
    report = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{name}/compiled"  # only a first start compiles what it imports
        for part in arguments.parts or PARTS:
            found = PARTS[part](host, Path(name) / part, arguments.runs)
            report[part] = {"machine": versions(), **found}
            RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            print(json.dumps({part: found}, indent=2), flush=True)


def start(host: Path, folder: Path, runs: int) -> Row:
    """The pack's own part of the start, in fresh processes."""
    script = str(ROOT / "tests" / "host" / "pack_start.py")
    took = []
    for _ in range(6):
        done = subprocess.run([host_python(host), script], capture_output=True, text=True, check=True)
        took.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        f"{kind}, seconds": {"first, which compiles": took[0][kind], **spread([row[kind] for row in took[1:]])}
        for kind in ("host", "processor", "clock")
    }


def object_info(host: Path, folder: Path, runs: int) -> Row:
    with ExitStack() as stack:
        sides = {side: stack.enter_context(server(host, folder, side)) for side in ("with", "without")}
        size = {side: len(running.read("/object_info")) for side, running in sides.items()}
        clock: dict[str, list[float]] = {side: [] for side in sides}
        before = {side: processor_seconds(running) for side, running in sides.items()}
        for turn in range(20):
            for side in order(sides, turn):
                clock[side].append(timed(lambda running: running.read("/object_info"), sides[side]))
        processor = {side: (processor_seconds(running) - before[side]) / 20 for side, running in sides.items()}
    return {"bytes": size, "clock, seconds": each_spread(clock), "CPU seconds": processor}


def opening(host: Path, folder: Path, runs: int) -> Row:
    """Loading the page, and in it the templates and ComfyUI's default workflow, until they are drawn."""
    from tests.browser.conftest import CHROMIUM
    from tests.browser.frontend import Frontend, chromium
    from tests.browser.museums import save_museums

    save_museums(folder / "with" / "models" / "loras" / "museums")
    with ExitStack() as stack:
        browser = stack.enter_context(chromium(CHROMIUM))
        pages = {}
        for side in ("with", "without"):
            address = stack.enter_context(server(host, folder, side)).address
            pages[side] = stack.enter_context(Frontend.opened(browser, address))
        default = pages["without"].page.evaluate("app.graph.serialize()")
        loading: dict[str, list[float]] = {side: [] for side in pages}
        for turn in range(7):
            for side in order(pages, turn):
                loading[side].append(timed(reload, pages[side]))
        files = {name: ROOT / "example_workflows" / f"{name}.json" for name in TEMPLATES}
        templates = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
        workflows = {
            "default, without the pack": ("without", default),
            "default": ("with", default),
            **{name: ("with", template) for name, template in templates.items()},
        }
        took: dict[str, list[float]] = {name: [] for name in workflows}
        for turn in range(11):
            for name in order(workflows, turn):
                side, workflow = workflows[name]
                took[name].append(pages[side].page.evaluate(OPEN, workflow))
        errors = [error for frontend in pages.values() for error in frontend.errors]
    assert not errors, errors
    return {
        "loading the page, seconds": each_spread(loading),
        "opening a workflow, seconds": {
            name: {"nodes": len(workflows[name][1]["nodes"]), **spread(seconds[1:])} for name, seconds in took.items()
        },
    }


def first_picture(host: Path, folder: Path, runs: int) -> Row:
    """From Run to the saved picture of one's own museum, on a server that has just started: one character, learned
    from 16 pictures with the automatic settings; and two more after it, as in the first template."""
    took = {}
    for count in (1, 3):
        prompt = chain(count, preview_every=50, **AUTOMATIC)
        for number in range(1, count + 1):
            prompt[f"pictures{number}"]["inputs"]["count"] = 16
            prompt[f"concept{number}"]["inputs"]["vectors"] = 0
        last = f"train{count}"
        prompt["save"] = node("CLoRA_SaveMuseum", museum=[last, 2], name="first", overwrite=False)
        prompt |= shown("a photo of <ada>", [last, 0], [last, 1])
        prompt["show.sampler"]["inputs"]["steps"] = 20
        with server(host, folder / str(count), "with") as running:
            began = time.perf_counter()
            ended = running.run(prompt, 3600)
            took[f"{count} learned, seconds"] = time.perf_counter() - began
            assert ended.succeeded, ended.error
    return took


def memory(host: Path, folder: Path, runs: int) -> Row:
    """How much memory each side's server takes as it runs on and on."""
    save_starter_museum(folder / "with" / "models" / "loras" / "museums")
    sides: dict[str, tuple[Callable[[int], Prompt], int]] = {
        "Load Museum": (viewed, runs),
        "Load LoRA": (stock, runs),
        "Train Step": (trained, max(3, runs * 3 // 50)),
    }
    found = {}
    for name, (prompt, count) in sides.items():
        for cleared in (False, True):
            side = f"{name}, history cleared" if cleared else name
            with server(host, folder, "with") as running:
                found[side] = growth(running, prompt, count, cleared)
            print(side, found[side], flush=True)
    return found


def growth(running: Server, prompt: Callable[[int], Prompt], runs: int, cleared: bool) -> Row:
    """MiB of the server's process over that many Runs, after a tenth as many that do not count.

    cleared: whether ComfyUI's history is cleared after each of them.
    """
    at, sizes = [], []
    for run in range(-(runs // 10), runs + 1):
        extra = {"extra_pnginfo": {"workflow": {"id": "use"}}}  # as a page does
        queued = running.post("/prompt", {"prompt": prompt(run), "client_id": "use", "extra_data": extra})
        ended = running.finished(queued["prompt_id"])
        assert ended.succeeded, ended.error
        if cleared:
            running.post("/history", {"clear": True})
        if run >= 0 and run % max(1, runs // 100) == 0:
            at.append(run)
            sizes.append(process(running).memory_info().rss / 2**20)
    half = len(at) // 2
    return {
        "runs": runs,
        "MiB": [round(size, 1) for size in sizes],
        "MiB per 100 Runs": 100 * statistics.linear_regression(at, sizes).slope,
        "… in the second half": 100 * statistics.linear_regression(at[half:], sizes[half:]).slope,
    }


def viewed(run: int) -> Prompt:
    prompt = sampled_quickly(loaded(MUSEUM, TEXT), run)
    prompt["load"]["inputs"]["strength"] = strength(run)
    return prompt


def stock(run: int) -> Prompt:
    """ComfyUI's own node in the place of Load Museum. Only the model, which is loaded once, is the pack's."""
    prompt = sampled_quickly(starter() | shown(TEXT, ["load", 0], ["load", 1]), run)
    both = {"strength_model": strength(run), "strength_clip": strength(run)}
    links = {"model": ["base", 0], "clip": ["base", 1]}
    prompt["load"] = node("LoraLoader", lora_name=f"museums/{MUSEUM}.museum.safetensors", **links, **both)
    return prompt


def trained(run: int) -> Prompt:
    numbers = {"steps": 2, "training_seed": run + 1000}
    return sampled_quickly(chain(1, **numbers) | shown("a photo of <ada>", ["train1", 0], ["train1", 1]), run)


def sampled_quickly(prompt: Prompt, run: int) -> Prompt:
    prompt["show.sampler"]["inputs"] |= {"seed": run + 1000, "steps": 1}
    return prompt


def strength(run: int) -> float:
    """Another one every second Run."""
    return 0.5 + run // 2 / 1000


def save_starter_museum(folder: Path) -> None:
    """Of random exhibits, half of them word-gated: both ways of showing."""
    import torch
    from clora_pack.clora_core.bench.measuring import random_museum
    from clora_pack.clora_core.method.recipe import recipe_named
    from clora_pack.clora_core.museum.file import save_museum
    from clora_pack.nodes.host.base import HostBase
    from clora_pack.nodes.host.starter import load_starter

    with torch.inference_mode():
        museum = random_museum(HostBase(*load_starter()), EXHIBITS, RANK)
    gated, half = recipe_named("word-gated", rank=RANK), EXHIBITS // 2
    second = [replace(exhibit, recipe=gated) for exhibit in museum.exhibits[half:]]
    folder.mkdir(parents=True)
    save_museum(replace(museum, exhibits=(*museum.exhibits[:half], *second)), folder / f"{MUSEUM}.museum.safetensors")


@contextmanager
def server(host: Path, folder: Path, side: str) -> Iterator[Server]:
    running = Server(host, folder / side, *([WITHOUT] if side == "without" else []))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def process(running: Server) -> psutil.Process:
    assert running.process is not None
    return psutil.Process(running.process.pid)


def processor_seconds(running: Server) -> float:
    times = process(running).cpu_times()
    return times.user + times.system


def reload(frontend: Any) -> None:
    frontend.page.reload(wait_until="domcontentloaded")
    frontend.ready()


def timed(work: Callable[[Any], object], given: Any) -> float:
    began = time.perf_counter()
    work(given)
    return time.perf_counter() - began


def order(sides: Any, turn: int) -> list[str]:
    """Forwards and backwards in turns."""
    return list(sides)[:: 1 if turn % 2 else -1]


def each_spread(seconds: dict[str, list[float]]) -> dict[str, Row]:
    return {side: spread(values) for side, values in seconds.items()}


def spread(values: list[float]) -> Row:
    low, median, high = statistics.quantiles(values, n=4)
    return {"lower quartile": low, "median": median, "upper quartile": high}


def versions() -> Row:
    """What it was measured on, with which versions, and how busy that was."""
    import comfyui_version
    import torch
    from clora_pack.clora_core.bench.measuring import machine

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts = {"cores": os.cpu_count(), "comfyui": comfyui_version.__version__, "load": load}
    return {**machine(torch.device("cpu")), **facts}


PARTS = {
    "start": start,
    "object_info": object_info,
    "opening": opening,
    "first_picture": first_picture,
    "memory": memory,
}

if __name__ == "__main__":
    main()
