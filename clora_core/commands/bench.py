"""`bench step`: what one training step costs, and whether the cost grows with the museum.

The unit is the frozen model's own forward and backward pass (the gradient reaches only the word, as in textual
inversion), timed in turns with the real `learn` on the same pictures in the same process.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ..base import Schedule
from ..base_diffusers import DiffusersBase
from ..checkpoints import Parts
from ..concept import Concept
from ..learn import Progress, learn
from ..lesson import Lesson
from ..museum import Museum
from ..objective import diffusion_loss
from ..prompts import TextEncoder
from ..recipe import Recipe, recipe_named
from ..seeds import seeded
from ..start import start
from ..starter.layout import vocabulary
from ..starter.model import build_scheduler, build_tokenizer
from . import bench_forgetting, bench_museum, bench_search
from .measuring import machine, random_museum
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bench", help="measure speed", description=__doc__)
    kinds = parser.add_subparsers(title="what to measure", metavar="", required=True)
    bench_forgetting.add(kinds)
    bench_museum.add(kinds)
    bench_search.add(kinds)
    step = kinds.add_parser(
        "step",
        help="a training step against the frozen forward and backward pass",
        description="Time C-LoRA's training step on a UNet of Stable Diffusion 1.5's shape with random weights, for "
        "museums of growing size, as a ratio to the frozen model's forward and backward pass in the same run.",
    )
    step.add_argument("--past", type=int, nargs="+", default=[0, 1, 10, 100], help="exhibits already in the museum")
    step.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (256)")
    step.add_argument("--batch-size", type=int, default=1, help="pictures at once (1)")
    step.add_argument("--rank", type=int, default=16, help="rank of every delta (16)")
    step.add_argument("--rounds", type=int, default=3, help="turns of each (3), two timed steps a turn")
    step.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    step.add_argument("--json", type=Path, help="write the numbers to this file")
    step.set_defaults(run=run_step)


def run_step(arguments: argparse.Namespace, say: Say) -> None:
    base = sd15_shaped_base(torch.device(arguments.device))
    recipe = recipe_named("c-lora", rank=arguments.rank, batch_size=arguments.batch_size, steps=3)
    pictures = torch.rand(2, 3, arguments.size, arguments.size, generator=seeded("bench pictures")) * 2 - 1
    concept = Concept("<bench>", pictures)
    say(f"A UNet of SD1.5's shape, {arguments.size} px, batch {recipe.batch_size}, rank {recipe.rank}, {base.device}.")
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
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("size", "batch_size", "rank", "rounds")}
        report = {"machine": machine(base.device), "settings": settings, "frozen_seconds": unit, "steps": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def frozen_steps(base: DiffusersBase, concept: Concept, recipe: Recipe) -> Iterator[float]:
    """Seconds of each forward and backward pass that trains the word alone."""
    lesson = Lesson.prepared(base, concept, recipe)
    trained = start(base, concept, recipe, Museum(base.fingerprint))
    with base.learning(precision=recipe.precision, checkpointing=recipe.checkpointing):
        for number in range(recipe.steps):
            begun = _now(base.device)
            diffusion_loss(lesson.step(number, trained), base.schedule).backward()
            yield _now(base.device) - begun


def learning_steps(base: DiffusersBase, museum: Museum, concept: Concept, recipe: Recipe) -> list[float]:
    """Seconds between the updates of a real learning; the first holds its preparation and is not one of them."""
    heard: list[float] = []

    def report(progress: Progress) -> None:
        heard.append(_now(base.device))

    learn(base, museum, concept, recipe, report=report)
    return [0.0, *(after - before for before, after in itertools.pairwise(heard))]


def sd15_shaped_base(device: torch.device) -> DiffusersBase:
    """A UNet of Stable Diffusion 1.5's shape (860 M) with random weights; text encoder and autoencoder are stand-ins
    of the right widths, since neither is part of what is timed but for one layer of text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32),  # type: ignore[arg-type]
            down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
        )
        text = CLIPTextConfig(
            vocab_size=len(vocabulary()),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=1,
            bos_token_id=0,
            eos_token_id=1,
        )
        encoder = TextEncoder("clip_l", CLIPTextModel(text), build_tokenizer(), padding=1)
    schedule = Schedule(build_scheduler().alphas_cumprod.float(), "epsilon")
    return DiffusersBase(Parts(unet, vae, (encoder,), schedule), device=device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
