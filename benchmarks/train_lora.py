"""A step of ComfyUI's built-in Train LoRA beside a step of ours, in one ComfyUI.

    python benchmarks/train_lora.py [starter] [sd15] [sdxl] [cosmos-predict2] [flux] …      with ComfyUI's own Python

Models: the starter; checkpoint files of SD1.5's and SDXL's real size with random weights, and of SDXL with half of the
channels in most blocks; and transformers of real width with few blocks (`memory_table.FEW`), with small text encoders.
All sides take turns in one process, in another order in every round; each one's peak memory is that of a process of its
own, with the model. Rank, batch, precision and checkpointing are equal, and our deltas and the built-in ones are
float32.

The sides do not do the same work. Train LoRA trains every layer of the network and no word. The side "keys and values
only" shows it fewer layers, those that ours trains; no setting of the node does that. Ours trains its word through the
text encoder, or, "frozen token", no word either. A step of ours is that of the engine's `learn` over ComfyUI's models,
without the node's progress panel. Floor: the forward and backward pass of ours for the word alone. Adds to
`benchmarks/results/train_lora.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

if (ROOT := str(Path(__file__).resolve().parents[1])) not in sys.path:  # tests have it behind ComfyUI's own modules
    sys.path.insert(0, ROOT)
from tests.host.finding import import_host, required_host

RESULT = Path(__file__).parent / "results" / "train_lora.json"
RANK, BATCH_SIZE = 16, 1
CAPTIONS = 4  # protected everyday prompts: more are read before the first step, but make no step longer
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTHS = {  # channels at each resolution, in multiples of 320
    "sd15": (1, 2, 4, 4),
    "sdxl": (1, 2, 4),
    "sdxl-narrow": (1, 1, 2),  # for machines with less than 32 GB
}
Report = Callable[[float], None]


@dataclass(frozen=True)
class Task:
    """One model, and how all sides train."""

    models: tuple[Any, Any, Any]  # MODEL, CLIP, VAE
    size_px: int
    precision: str
    checkpointing: bool

    def sides(self) -> dict[str, Callable[[Report], None]]:
        """By name; the first is the floor."""
        from clora_pack.clora_core.learning.fitting import gated_by_default
        from clora_pack.clora_core.method.recipe import DEFAULT_METHOD, GATED
        from clora_pack.nodes.host.base import HostBase

        base = HostBase(*self.models)
        base.family = replace(base.family, captions=base.family.captions[:CAPTIONS])
        method = GATED if gated_by_default(base.family) else DEFAULT_METHOD
        return {
            "floor": lambda report: self.ours(report, base, 0, "textual-inversion"),
            f"{method}, 0 earlier": lambda report: self.ours(report, base, 0, method),
            f"{method}, 100 earlier": lambda report: self.ours(report, base, 100, method),
            f"{method}, frozen token": lambda report: self.ours(report, base, 0, method, token="frozen"),
            "Train LoRA": self.train_lora,
            "Train LoRA, keys and values only": lambda report: self.train_lora(report, places(base)),
        }

    def ours(self, report: Report, base: Any, past: int, method: str, **settings: Any) -> None:
        """A real learning after so many exhibits of the same recipe."""
        from clora_pack.clora_core.bench.measuring import random_museum
        from clora_pack.clora_core.bench.step import STEPS
        from clora_pack.clora_core.learning.learn import learn
        from clora_pack.clora_core.method.recipe import recipe_named
        from clora_pack.clora_core.model.concept import Concept
        from clora_pack.clora_core.museum.museum import Museum
        from clora_pack.clora_core.pictures import in_memory
        from clora_pack.clora_core.seeds import seeded

        pictures = torch.rand(2, 3, self.size_px, self.size_px, generator=seeded("bench pictures")) * 2 - 1
        numbers = {"batch_size": BATCH_SIZE, "precision": self.precision, "checkpointing": self.checkpointing}
        rank = 0 if method == "textual-inversion" else RANK
        recipe = replace(recipe_named(method), rank=rank, steps=STEPS, **numbers, **settings)
        exhibits = tuple(replace(exhibit, recipe=recipe) for exhibit in random_museum(base, past, RANK).exhibits)
        concepts = [Concept("<one>", in_memory(pictures), vectors=0, start="a")]  # small vocabularies have both words
        learn(base, Museum(base.fingerprint, exhibits), concepts, recipe, report=lambda progress: report(progress.loss))

    def train_lora(self, report: Report, only: frozenset[str] | None = None) -> int:
        """The node's own `train`; returns how many numbers it trains. only: the modules that it may see."""
        from clora_pack.clora_core.bench.step import STEPS
        from clora_pack.clora_core.seeds import seeded
        from clora_pack.nodes.host.base import HostBase

        from tests.host.models import extra

        node = extra("nodes_train")
        model, clip, _ = self.models
        shape = HostBase(*self.models).latent_shape(self.size_px, self.size_px)
        latents = torch.randn(2, *shape, generator=seeded("bench latents"))
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a cat"))

        class Reporting(node.TrainSampler):
            def __init__(self, loss_fn: Any, optimizer: Any, loss_callback: Any = None, **more: Any) -> None:
                super().__init__(loss_fn, optimizer, loss_callback=report, **more)

        with mock.patch.object(node, "TrainSampler", Reporting), seeing_only(model.model, only):
            trained, lora, *_ = node.TrainLoraNode().train(
                model,
                {"samples": latents},
                positive,
                batch_size=BATCH_SIZE,
                steps=STEPS,
                grad_accumulation_steps=1,
                learning_rate=5e-4,
                rank=RANK,
                optimizer="AdamW",
                loss_function="MSE",
                seed=0,
                training_dtype=self.precision,
                lora_dtype="fp32",
                algorithm="LoRA",
                gradient_checkpointing=self.checkpointing,
                existing_lora="[None]",
            )
        trained.detach()
        return sum(value.numel() for name, value in lora.items() if not name.endswith("alpha"))


@contextmanager
def seeing_only(network: Any, names: frozenset[str] | None) -> Iterator[None]:
    """The first call of the network's `named_modules`, with which Train LoRA looks for layers, yields only these."""
    found = list(network.named_modules())

    def once() -> Iterator[tuple[str, Any]]:
        del network.named_modules
        return iter([(name, module) for name, module in found if name in names])

    if names is not None:
        network.named_modules = once
    try:
        yield
    finally:
        vars(network).pop("named_modules", None)


def places(base: Any) -> frozenset[str]:
    """The names of the modules with the projections that ours trains."""
    own = {id(slot.module) for slot in base.slots.values()}
    return frozenset(name for name, module in base.model.model.named_modules() if id(module) in own)


def opened(name: str, checkpoint: Path) -> tuple[Any, Any, Any]:
    """ComfyUI's MODEL, CLIP and VAE."""
    if name == "starter":
        from clora_pack.nodes.host.starter import load_starter

        return load_starter()
    if name in WIDTHS:
        from tests.host.checkpoints import open_checkpoint

        return open_checkpoint(checkpoint)
    from benchmarks.memory_table import FEW
    from tests.host import small_transformers

    kind, sizes = small_transformers.NETWORKS[name]
    with mock.patch.dict(small_transformers.NETWORKS, {name: (kind, {**sizes, **FEW[name]})}):
        return small_transformers.small_transformer(name)


def compared(name: str, options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """The times of all sides over one model."""
    from clora_pack.clora_core.bench.measuring import machine
    from clora_pack.clora_core.bench.step import measured

    from tests.host.checkpoints import write_checkpoint

    if name in WIDTHS:
        write_checkpoint(name.partition("-")[0], checkpoint, WIDTHS[name])
    sides = Task(opened(name, checkpoint), options.size, options.precision, options.checkpointing).sides()
    rows = measured({side: run for side, run in sides.items() if side not in options.without}, DEVICE, options.rounds)
    settings = {key: getattr(options, key) for key in ("size", "precision", "checkpointing", "rounds")}
    return {"model": name, "machine": machine(DEVICE), "settings": settings, "sides": rows}


def keep(found: dict[str, Any]) -> None:
    """Print a result, and put it into the file in place of an older one of the same model and settings."""
    from clora_pack.clora_core.bench.step import table_of_sides

    print(f"\n{found['model']}, {found['settings']}\n\n{table_of_sides(found['sides'])}", flush=True)
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else []
    kept = [each for each in kept if any(each[key] != found[key] for key in ("model", "settings"))]
    RESULT.write_text(json.dumps([*kept, found], indent=1) + "\n", encoding="utf-8")


def peak_alone(name: str, side: str, checkpoint: Path) -> float:
    """The peak memory, in GiB, of a process that runs one side; with the same options as this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, side, str(checkpoint)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["starter"])
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (256)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--rounds", type=int, default=2, help="of each side (2), with two timed steps")
    parser.add_argument("--without", nargs="+", default=[], metavar="SIDE", help="sides to leave out")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # model, side, file: prints its peak memory
    options = parser.parse_args()
    import_host(required_host())
    from clora_pack.clora_core.bench.measuring import memory_peak_gib
    from clora_pack.nodes.host.differentiable import ordinary_tensors

    with ordinary_tensors():
        if options.only:
            name, side, checkpoint = options.only
            task = Task(opened(name, Path(checkpoint)), options.size, options.precision, options.checkpointing)
            task.sides()[side](lambda loss: None)
            print(memory_peak_gib(DEVICE))
            return
        for name in options.models:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = Path(folder, "random.safetensors")
                keep(found := compared(name, options, checkpoint))
                for row in found["sides"] if options.memory else ():
                    row["peak_gib"] = peak_alone(name, row["side"], checkpoint)
                if options.memory:
                    keep(found)


if __name__ == "__main__":
    main()
