"""The cost of a museum of 100 exhibits inside ComfyUI, compared with 100 stock Load LoRA nodes and embeddings.

    python benchmarks/museum_host.py [--ranks 4 8 16] [--exhibits 100]        with ComfyUI's own Python

Both sides show the same numbers on a UNet of SD1.5's real size with random weights (9 GiB of memory), in one process:
C-LoRA Load Museum from one file, and a chain of stock nodes from the files that `export` writes. Their pictures must
agree. Then sampling steps are timed in turns: on the plain model, on a clone without a museum (which shows the noise of
the measurement), and on one with the museum; all share their weights. The starter, with its short steps, is measured
too.
Writes `benchmarks/results/museum_host.json`.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.host.finding import import_host, required_host

RESULT = Path(__file__).parent / "results" / "museum_host.json"
CLOCKS = {"seconds": time.perf_counter, "CPU seconds": time.process_time}
LATENT = 16  # rows and columns: pictures of 128 px
REAL = {
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exhibits", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rounds", type=int, default=4, help="how often each side loads")
    parser.add_argument(
        "--turns", type=int, default=24, help="how often each model samples; the starter ten times that"
    )
    arguments = parser.parse_args()
    host = required_host()
    sys.argv = sys.argv[:1]
    import_host(host)
    with torch.inference_mode():
        report = host_report(host, arguments)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for rank, clocks in report["loading"].items():
        for clock, parts in clocks.items():
            print(f"rank {rank}, {clock}:")
            for part, row in parts.items():
                times = f"stock {row['stock']:7.2f}   museum {row['museum']:7.2f}   {row['times']:5.1f} times faster"
                print(f"  {part:32} {times}")
    for model, sides in report["a sampling step, CPU seconds"].items():
        for side, took in sides.items():
            spread = f"quartiles {took['lower quartile']:.3f} to {took['upper quartile']:.3f}"
            print(f"a sampling step, {model}, {side}: {took['times']:.3f} times the plain model's ({spread})")


def host_report(host: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from clora_pack.clora_core.bench.measuring import random_museum
    from clora_pack.nodes.host.base import HostBase
    from clora_pack.nodes.host.starter import load_starter
    from clora_pack.nodes.host.view import view

    models, stock = real_sized(), stock_nodes(host)
    machine_as_found = host_machine()
    loading = {}
    for rank in arguments.ranks:
        museum = random_museum(HostBase(*models), arguments.exhibits, rank)
        loading[rank] = loading_times(models, museum, stock, arguments.rounds)
    viewing = view(*models[:2], museum)[0]
    starter = load_starter()
    small = view(*starter[:2], random_museum(HostBase(*starter), arguments.exhibits, arguments.ranks[-1]))[0]
    return {
        "machine": machine_as_found,
        "settings": vars(arguments) | {"unet": "SD1.5, 860 M, float32", "picture_px": 8 * LATENT},
        "loading": loading,
        "a sampling step, CPU seconds": {
            "sd15": sampling_times(models[0], viewing, arguments.turns),
            "starter": sampling_times(starter[0], small, 10 * arguments.turns),
        },
    }


def loading_times(models: Any, museum: Any, stock: ModuleType, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """clock → part of the work → the fastest round of each side. The pictures of both sides must agree."""
    from clora_pack.clora_core.museum.file import export, save_museum

    from tests.host.models import denoised

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "loras" / "museums").mkdir(parents=True)
        save_museum(museum, folder / "loras" / "museums" / "all.museum.safetensors")
        export(museum, folder, separate=True)
        nodes, words = Nodes(folder), [word.strip("<>") for word in museum.words]

        def by_museum() -> tuple[Any, Any]:
            return nodes.load_museum(*models[:2])

        def by_chain() -> tuple[Any, Any]:
            return chained(stock, *models[:2], words, folder / "embeddings")

        took: dict[str, list[Stages]] = {"museum": [], "stock": []}
        for _ in range(rounds):
            drawn = []
            for side, show, spelling in (("museum", by_museum, "<{}>"), ("stock", by_chain, "embedding:{}")):
                stages = Stages()
                prompt = " ".join(spelling.format(word) for word in words)
                model, clip = stages.timed("reading files into patches", show)
                stages.timed("merging into the weights", merge_weights, model)
                text = stages.timed("encoding a prompt of all words", stock.CLIPTextEncode().encode, clip, prompt)[0]
                stages.summed()
                took[side].append(stages)
                drawn.append(denoised(model, text[0][0][:, :77]))
                away()
            apart = (drawn[0] - drawn[1]).norm() / drawn[1].norm()
            assert apart < 1e-3, f"The two sides do not show the same: {apart:.2g}."
    return {clock: compared(took, clock) for clock in CLOCKS}


class Stages:
    """How long each stage took by both clocks. Processor time counts no waiting for other programs."""

    def __init__(self) -> None:
        self.took: dict[str, dict[str, float]] = {clock: {} for clock in CLOCKS}

    def timed(self, name: str, work: Callable[..., Any], *given: Any) -> Any:
        begun = {clock: now() for clock, now in CLOCKS.items()}
        result = work(*given)
        for clock, now in CLOCKS.items():
            self.took[clock][name] = now() - begun[clock]
        return result

    def summed(self) -> None:
        for stages in self.took.values():
            stages["altogether"] = sum(stages.values())


class Nodes:
    """The pack's own Load Museum over files in that folder."""

    def __init__(self, folder: Path) -> None:
        import folder_paths
        from clora_pack import comfy_entrypoint

        async def listed() -> list[Any]:
            return await (await comfy_entrypoint()).get_node_list()

        self.load = next(node for node in asyncio.run(listed()) if node.GET_SCHEMA().node_id == "CLoRA_LoadMuseum")
        places = {"loras": folder / "loras", "museums": folder / "loras" / "museums"}
        for kind, place in places.items():
            folder_paths.folder_names_and_paths[kind] = ([str(place)], {".safetensors"})

    def load_museum(self, model: Any, clip: Any) -> tuple[Any, Any]:
        return self.load.execute(model, clip, "all.museum.safetensors", "", 1.0).args[:2]


def chained(stock: ModuleType, model: Any, clip: Any, words: list[str], embeddings: Path) -> tuple[Any, Any]:
    """A chain of Load LoRA nodes, one per word, and a tokenizer with the words' embedding files."""
    for word in words:
        model, clip = stock.LoraLoader().load_lora(model, clip, f"{word}.safetensors", 1.0, 1.0)
    for part in vars(clip.tokenizer).values():
        if hasattr(part, "embedding_directory"):
            part.embedding_directory = [str(embeddings)]
    return model, clip


def merge_weights(model: Any) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])


def away() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


def sampling_times(plain: Any, viewing: Any, turns: int) -> dict[str, dict[str, float]]:
    """Processor seconds of a sampling step, and how many times longer it is than the plain model's."""
    sides = {"plain": plain, "a clone that shows nothing": plain.clone(), "the museum": viewing}
    took: dict[str, list[float]] = {side: [] for side in sides}
    orders = list(itertools.permutations(sides))
    for turn in range(turns):
        for side in orders[turn % len(orders)]:
            took[side].append(sampling_step(sides[side]))
    found = {}
    for side in list(sides)[1:]:
        low, times, high = statistics.quantiles([a / b for a, b in zip(took[side], took["plain"], strict=True)], n=4)
        seconds = {"plain": statistics.median(took["plain"]), "seconds": statistics.median(took[side])}
        found[side] = {**seconds, "lower quartile": low, "times": times, "upper quartile": high}
    return found


def sampling_step(model: Any) -> float:
    """Processor seconds of a sampling step: the quickest of three, after a first one that loads the model."""
    import comfy.sample

    clocks: list[float] = []
    latents = torch.zeros(1, model.model.latent_format.latent_channels, LATENT, LATENT)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    width = model.model.model_config.unet_config["context_dim"]
    condition = [[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(2)), {}]]

    def report(*ignored: object) -> None:
        clocks.append(time.process_time())

    options = {"seed": 1, "callback": report, "disable_pbar": True}
    comfy.sample.sample(model, noise, 4, 1.0, "euler", "normal", condition, condition, latents, **options)
    return min(after - before for before, after in itertools.pairwise(clocks))


def real_sized() -> tuple[Any, Any, Any]:
    """A UNet of SD1.5's real size; text encoder and autoencoder are small, since they are the same for both sides."""
    import comfy.model_management
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    from tests.host.models import UNET, fill, small_models

    config = comfy.supported_models.SD15({**UNET, **REAL})
    config.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model({}, "", device=offload)
    fill(model.diffusion_model, seed=1)
    _, clip, vae = small_models("sd15")
    return ModelPatcher(model, comfy.model_management.get_torch_device(), offload), clip, vae


def stock_nodes(host: Path) -> ModuleType:
    """ComfyUI's nodes.py; the pack has a `nodes` of its own."""
    spec = importlib.util.spec_from_file_location("stock_nodes", host / "nodes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(loading: dict[str, list[Stages]], clock: str) -> dict[str, dict[str, float]]:
    """The quickest round of each side, by part."""
    found = {}
    for part in loading["museum"][0].took[clock]:
        row = {side: min(stages.took[clock][part] for stages in loading[side]) for side in ("stock", "museum")}
        found[part] = {**row, "times": row["stock"] / row["museum"]}
    return found


def host_machine() -> dict[str, object]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": f"cpu {platform.machine()}", "threads": torch.get_num_threads(), "load": load, **versions}


if __name__ == "__main__":
    main()
