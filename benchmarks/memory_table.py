"""The memory of learning, for every supported family at its real size: models, past and a training step.

    COMFYUI_PATH=… PYTHONPATH=. python benchmarks/memory_table.py --json FILE        (with ComfyUI's own Python)

Networks and text encoders are ComfyUI's own classes, built on torch's meta device, which has shapes but no memory;
their weights count in 16 bits. The past is that of a museum of 10 and 100 exhibits of rank 16, as the projections
read it in 16 bits. The step is what Train Step expects (`fitting.learning_bytes`): the default recipe of the family,
without models and past: one picture of 512 or 1024 pixels in bf16 with gradient checkpointing, and the larger one
without checkpointing, in fp32, or in a batch of 4. FILE is added to, since no host has all families.

`--measure` compares the expected activations with reality: networks of the real width with fewer blocks take a real
step on the CPU, and the highest resident memory of the process above its weights is printed beside the sum of what
autograd saves on the meta device.
"""

import argparse
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.transformer_memory import REAL, count_attention, kept, prepared
from tests.host.finding import find_host, import_host

RANK = 16
BYTES = 2  # of a number in 16 bits
SD3 = REAL["sd3 (3.5 large)"][1]
MEDIUM = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * 24}}
UNETS = {"SD1.5": ("sd15", "SD15"), "SD2": ("sd2", "SD20"), "SDXL": ("sdxl", "SDXL"), "KOALA 1B": ("sdxl", "KOALA_1B")}
UNETS |= {"KOALA 700M": ("sdxl", "KOALA_700M")}
# What ComfyUI finds in the files of these UNets, beyond what their classes say.
UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "dtype": torch.bfloat16},
    **{"use_spatial_transformer": True, "legacy": False},
}
SD = {
    **{"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0]},
    **{"transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "adm_in_channels": None},
}
XL = {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "num_classes": "sequential"}
XL |= {"transformer_depth_middle": 10}
XL |= {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
KOALA = {**XL, "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 2, 5], "transformer_depth_middle": -1}
KOALA |= {"transformer_depth_output": [0, 0, 2, 2, 5, 5]}
CONFIGS = {
    "SD1.5": {**SD, "num_heads": 8},
    "SD2": {**SD, "num_head_channels": 64},
    "SDXL": XL,
    "KOALA 1B": {**KOALA, "transformer_depth": [0, 2, 6], "transformer_depth_output": [0, 0, 2, 2, 6, 6]},
    "KOALA 700M": KOALA,
}


def kinds() -> dict[str, tuple[str, Any]]:
    """Model → family, and ComfyUI's configuration of it, for all that this host has."""
    import comfy.supported_models

    from tests.host.small_transformers import NETWORKS

    found = {}
    for title, (family, name) in UNETS.items():
        kind = getattr(comfy.supported_models, name)
        found[title] = family, kind({**UNET, **kind.unet_config, **CONFIGS[title]})
    medium = {"depth": 24, "context_embedder_config": MEDIUM, "x_block_self_attn_layers": list(range(13))}
    real = {**REAL, "sd3 (3.5 medium)": ("sd3", {**SD3, **medium, "pos_embed_max_size": 384, "num_patches": 147456})}
    for title, (family, sizes) in real.items():
        if family in NETWORKS:
            name, config = NETWORKS[family]
            own = title if title.startswith("flux2-klein") else family  # the tests have one size of it
            found[title] = own, getattr(comfy.supported_models, name)({**config, **sizes})
    return found


def network_of(kind: Any) -> nn.Module:
    kind.set_inference_dtype(torch.bfloat16, None)
    return kind.get_model({}, "", device=torch.device("meta")).diffusion_model.to(device="meta").requires_grad_(False)


def encoders_of(kind: Any, names: Collection[str]) -> dict[str, int]:
    """Text encoder → its number of weights. names: those of the family."""
    t5 = torch.empty(1, dtype=torch.bfloat16)
    has = {f"text_encoders.clip_{name}.transformer.text_model.final_layer_norm.weight": None for name in "lg"}
    has["text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"] = t5  # type: ignore[assignment]
    has |= {f"text_encoders.{name}.transformer.model.norm.weight": t5 for name in names if name.startswith("qwen3")}  # type: ignore[dict-item]
    with torch.device("meta"):
        model = kind.clip_target(has).clip(device=torch.device("meta"), dtype=torch.bfloat16, model_options={})
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def row(title: str, family: str, kind: Any) -> dict[str, Any]:
    from clora_pack.clora_core.learning.fitting import Device, fitted, learning_bytes, past_values
    from clora_pack.clora_core.method.draft import Draft
    from clora_pack.clora_core.method.recipe import DEFAULT_METHOD, GATED, RECIPES, Recipe
    from clora_pack.clora_core.model.base import Fingerprint
    from clora_pack.clora_core.model.concept import ConceptToken
    from clora_pack.clora_core.model.families import family_named
    from clora_pack.clora_core.model.low_rank import LowRank
    from clora_pack.clora_core.museum.museum import Exhibit, Museum

    network, known = network_of(kind), family_named(family)
    modules = dict(network.named_modules())
    places = known.structure.find(modules, lambda module: modules[module].weight.shape)
    fingerprint = Fingerprint(family, "0" * 64)
    one = {
        place: LowRank(
            torch.empty(place.shape[0], RANK, device="meta"), torch.empty(RANK, place.shape[1], device="meta")
        )
        for place in places
    }
    vectors = {name: torch.empty(1, 1, width) for name, width in known.encoders.items()}

    def museum(count: int) -> Museum:
        tokens = [ConceptToken(f"<{number}>", vectors) for number in range(count)]
        return Museum(fingerprint, tuple(Exhibit(token, one, Recipe()) for token in tokens))

    draft = Draft(RECIPES[GATED if known.reads == "shared" else DEFAULT_METHOD])
    recipe = fitted(draft, known, Device(2**50, "bf16"), lambda choice: 0)
    base = dataclasses.replace(recipe, batch_size=1, checkpointing=True, precision="bf16")
    values = {count: sum(past_values(place, museum(count)) for place in places) for count in (10, 100)}
    gated = recipe.applied != "everywhere"

    def step(side: int, **changed: Any) -> int:
        pixels = (side // (16 if known.latent_channels == 128 else 8)) ** 2  # Klein's latents are of 16 pixels
        chosen, empty = dataclasses.replace(base, **changed), Museum(fingerprint)
        needed = learning_bytes(known, places, chosen, empty, latent_pixels=pixels, copied_bytes=0, read_bytes=BYTES)
        return needed - BYTES * sum(past_values(place, empty) for place in places)

    gigabytes = {
        "weights": BYTES * sum(weight.numel() for weight in network.parameters()),
        "encoders": BYTES * sum(encoders_of(kind, known.encoders).values()),
        "past 10": 0 if gated else BYTES * values[10],
        "past 100": 0 if gated else BYTES * values[100],
        "whole past": 0 if gated else 4 * sum(place.shape[0] * place.shape[1] for place in places),
        "step 512": step(512),
        "step 1024": step(1024),
        "step 1024, batch of 4": step(1024, batch_size=4),
        "step 1024, fp32": step(1024, precision="fp32"),
        "step 1024, not checkpointed": step(1024, checkpointing=False),
    }
    return {
        "model": title,
        "family": family,
        "method": recipe.method,
        "projections": len(places),
        **{name: round(size / 2**30, 2) for name, size in gigabytes.items()},
    }


FEW = {  # blocks of real width
    "cosmos-predict2": {**REAL["cosmos-predict2 (2B)"][1], "num_blocks": 4},
    "wan": {**REAL["wan (1.3B)"][1], "num_layers": 4},
    "flux": {**REAL["flux (dev)"][1], "depth": 2, "depth_single_blocks": 2},
    "qwen-image": {**REAL["qwen-image"][1], "num_layers": 3},
}
SIDE_MEASURED = 48  # of the latents: 384 pixels


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure() -> dict[str, dict[str, float]]:
    """family → MiB: what autograd keeps as counted on the meta device, and what the process holds after the forward
    pass and at most in the backward pass, above what it held before."""
    real, attention = {}, torch.nn.functional.scaled_dot_product_attention
    for family, sizes in FEW.items():
        network, learning = prepared(family, sizes, "cpu", SIDE_MEASURED)
        with torch.no_grad():
            for weight in network.parameters():
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
        with learning() as forward:
            forward().float().square().sum().backward()  # what is made once
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            loss = forward().float().square().sum()
            after = resident("VmRSS")
            loss.backward()
        real[family] = {"after forward": after - before, "at most": resident("VmHWM") - before}
        del network, learning, forward, loss
    count_attention()
    for family, sizes in FEW.items():
        real[family]["counted"] = kept(family, sizes, SIDE_MEASURED)[0].total()
    torch.nn.functional.scaled_dot_product_attention = attention
    return {family: {name: round(size / 2**20) for name, size in sizes.items()} for family, sizes in real.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    import_host(find_host())  # type: ignore[arg-type]
    if arguments.measure:
        print(json.dumps(measure()))
        return
    known = {"unit": "GiB", "rows": []}
    if arguments.json and arguments.json.exists():
        known = json.loads(arguments.json.read_text())
    rows = {each["model"]: each for each in known["rows"]}
    for title, (family, kind) in kinds().items():
        rows[title] = row(title, family, kind)
        print(json.dumps(rows[title]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({**known, "rows": list(rows.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
