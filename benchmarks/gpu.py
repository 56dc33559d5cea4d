"""What to run on a new graphics card; meant for under 10 minutes, not yet run on one. One JSON and one table.

    PYTHONPATH=. python benchmarks/gpu.py                             writes benchmarks/results/gpu.json and gpu.md
    PYTHONPATH=. python benchmarks/gpu.py --small --out FOLDER        the same checks in small, on any device

It checks on the device: C-LoRA's penalty and its gradient against float64 autograd, a closed gate, one learning against
the CPU's; a character on the built-in model in fp32, bf16 and fp16, and whether the judge recognizes it; the same
learning twice, and interrupted and resumed, bit for bit; `bench step --peers` at the real shapes of SD 1.5 (512 px) and
SDXL (1024 px) in bf16, against the targets in docs/speed-and-memory.md; and memory peaks against the estimate that
people are shown. Exits with 1 if a result is wrong; a missed target for time or memory is only reported.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clora_core.bench.measuring import machine, random_deltas
from clora_core.bench.peers import METHODS
from clora_core.bench.runs import write_json
from clora_core.bench.step import measured, work_of
from clora_core.commands.model import training_bytes
from clora_core.errors import Cancelled
from clora_core.learning.learn import Progress, learn
from clora_core.learning.state import LearningState
from clora_core.method.recipe import DEFAULT_METHOD
from clora_core.method.regularizers.self_regularization import LowRankOverlap
from clora_core.model.attach import attached
from clora_core.model.attachment import Gate
from clora_core.museum.museum import Exhibit, Museum
from clora_core.over_diffusers.base import open_base
from clora_core.seeds import seeded
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.exam import Examiner, concept_of
from clora_core.starter.judge import load_judge

SUBJECT = "gus"


@dataclass(frozen=True)
class Amount:
    """shapes: (of the UNet, side of the pictures in pixels). steps: of a learning; None for the usual ones."""

    shapes: tuple[tuple[str, int], ...]
    past: tuple[int, ...]
    rounds: int
    steps: int | None
    samples: int


WHOLE = Amount((("sd15", 512), ("sdxl", 1024)), past=(0, 10, 100), rounds=2, steps=None, samples=24)
SMALL = Amount((("tiny", 32),), past=(0, 2), rounds=1, steps=4, samples=2)


@dataclass(frozen=True)
class Line:
    """Of the table. holds: None where nothing is expected. must: whether it decides about the exit code."""

    what: str
    measured: float | bool
    target: str = ""
    holds: bool | None = None
    must: bool = False


def below(what: str, value: float, most: float, *, must: bool = False) -> Line:
    return Line(what, value, f"≤ {most:g}", value <= most, must)


def exactness(device: torch.device) -> list[Line]:
    """Differences to other ways of computing the same, relative to the largest value."""
    rng = seeded("exactness")
    past, up, down = (torch.randn(*shape, generator=rng) for shape in ((1280, 768), (1280, 16), (16, 768)))

    def penalty(value: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        fixed, *factors = (tensor.to(device, dtype) for tensor in (past, up, down))
        total = value(fixed, *(factor.requires_grad_() for factor in factors))
        return [total.detach(), *torch.autograd.grad(total, factors)]

    exact = penalty(lambda past, up, down: (past * (up @ down)).square().sum(), torch.float64)
    ours = penalty(LowRankOverlap.apply, torch.float32)  # type: ignore[arg-type]
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, exact, strict=True)]

    base = open_base("starter", device=device)
    latents = torch.randn(1, *base.latent_shape(64, 64), generator=rng).to(device)
    words, time_ = base.encode_prompts(["a photo of a cat"], ()), torch.tensor([500])
    with torch.no_grad():
        plain = base.predict(latents, time_, words)
        with attached(base, random_deltas(base.slots, 4, rng), Gate("<other>")):
            closed = torch.equal(base.predict(latents, time_, words), plain)

    gentle = {"steps": 4, "learning_rate": 1e-5, "token_learning_rate": 1e-5}  # rounding must not turn a step around
    here, there = losses(device, **gentle), losses(torch.device("cpu"), **gentle)
    apart = max(abs(a / b - 1) for a, b in zip(here, there, strict=True))
    return [
        below("C-LoRA's penalty and gradient against float64", max(errors), 1e-4, must=True),
        Line("a closed gate changes nothing, bit for bit", closed, "yes", closed, must=True),
        below("losses of a learning in fp32 against the CPU's", apart, 1e-3, must=True),
    ]


def losses(device: torch.device, **numbers: Any) -> list[float]:
    base, found = open_base("starter", device=device), []
    recipe = starter_recipe(DEFAULT_METHOD, **numbers)
    concept = concept_of(SUBJECT, 8, seed=0)
    learn(base, Museum(base.fingerprint), [concept], recipe, report=lambda progress: found.append(progress.loss))
    return found


def learnings(device: torch.device, amount: Amount) -> list[Line]:
    """A character in each precision: seconds, and the share of pictures in which the judge recognizes it."""
    lines = []
    examiner = Examiner(open_base("starter", device=device), load_judge())
    for precision in ("fp32", "bf16", "fp16"):
        recipe = starter_recipe(DEFAULT_METHOD, precision=precision)
        recipe = replace(recipe, steps=amount.steps or recipe.steps)
        quiet = {"watched": lambda title, steps: nullcontext(lambda progress: None), "plain": 4}
        course = take_course(examiner, [SUBJECT], recipe, samples=amount.samples, **quiet)
        recognized = course.evaluations[0][0].alignment
        learned = recognized >= 0.8 if amount.steps is None else None
        lines.append(Line(f"{precision}: recognized after {recipe.steps} steps", recognized, "≥ 0.8", learned, True))
        lines.append(Line(f"{precision}: seconds per step", course.seconds / recipe.steps))
    return lines


def repeated(device: torch.device, steps: int) -> list[Line]:
    """The same learning again, and interrupted half-way and resumed."""
    base, states = open_base("starter", device=device), []
    concept, recipe = concept_of(SUBJECT, 8, seed=0), starter_recipe(DEFAULT_METHOD, steps=steps)

    def taught(report: Callable[[Progress], None] | None = None, resume: LearningState | None = None) -> Exhibit:
        return learn(base, Museum(base.fingerprint), [concept], recipe, report=report, resume=resume)[0]

    def interrupt(progress: Progress) -> None:
        if progress.step == steps // 2:
            states.append(progress.snapshot())
            raise Cancelled

    whole = taught()
    again = whole.same_as(taught())
    with suppress(Cancelled):
        taught(interrupt)
    resumed = whole.same_as(taught(resume=states[0]))
    return [
        Line("the same learning twice gives the same exhibit, bit for bit", again, "yes", again, must=True),
        Line("interrupted and resumed, too", resumed, "yes", resumed, must=True),
    ]


def stepped(device: torch.device, amount: Amount, shape: str, size: int) -> tuple[list[Line], dict[str, Any]]:
    """`bench step --peers` at one shape, against the targets, and its memory peaks against the estimate."""
    settings = {"shape": shape, "size": size, "past": amount.past, "rank": 16, "batch_size": 1}
    settings |= {"precision": "bf16", "checkpointing": False}
    work = work_of(settings, device)
    rows = {row["side"]: row for row in measured(work.sides(peers=True), device, amount.rounds)}
    lines = [Line(f"{shape}, {size} px: {name}, seconds", row["seconds"]) for name, row in rows.items()]
    for method in METHODS:
        first, last = (rows[f"{method}, {past} earlier"] for past in (amount.past[0], amount.past[-1]))
        title = f"{shape}, {size} px: {method}, {amount.past[-1]} earlier:"
        lines.append(below(f"{title} time against the floor", last["seconds_ratio"], 1.05))
        lines.append(below(f"{title} time against {amount.past[0]} earlier", last["seconds"] / first["seconds"], 1.02))
        lines.append(below(f"{title} time against peft", last["seconds"] / rows["peft LoRA"]["seconds"], 1.0))
        if "peak_gib" in last:
            expected = training_bytes(work.base, work.recipe_of(method), work.museums[amount.past[-1]], (size, size))
            lines.append(below(f"{title} memory against the floor", last["peak_gib"] / rows["floor"]["peak_gib"], 1.05))
            lines.append(below(f"{title} memory against the estimate", last["peak_gib"] * 2**30 / expected, 1.0))
    return lines, {"settings": settings, "sides": list(rows.values())}


def table(lines: list[Line]) -> str:
    """As Markdown."""
    said = {True: "yes", False: "no", None: ""}
    rows = [("", "measured", "target", "holds"), ("---",) * 4]
    for line in lines:
        value = said[line.measured] if isinstance(line.measured, bool) else f"{line.measured:.3g}"
        rows.append((line.what, value, line.target, said[line.holds]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small shapes and few steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder (results)")
    options = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # or convolutions in fp32 have bf16's precision, nearly
    device, amount, begun = torch.device(options.device), SMALL if options.small else WHOLE, time.perf_counter()
    lines = [*exactness(device), *learnings(device, amount), *repeated(device, 8 if options.small else 40)]
    steps = []
    for shape, size in amount.shapes:
        more, found = stepped(device, amount, shape, size)
        lines, steps = [*lines, *more], [*steps, found]
    lines.append(Line("seconds in all", time.perf_counter() - begun))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "gpu.json", {"machine": machine(device), "lines": list(map(vars, lines)), "steps": steps})
    (options.out / "gpu.md").write_text(table(lines) + "\n", encoding="utf-8")
    print(table(lines))
    return int(any(line.must and line.holds is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
