"""Options that several commands share, and opening the model that they name."""

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import BaseModelError
from ..learning.fitting import Device, copied_bytes, learning_bytes
from ..method.recipe import BASELINES, DEFAULT_METHOD, RECIPES, Recipe
from ..model.concept import TEMPLATES
from ..model.precision import AUTOCAST, DTYPES
from ..model.sampling import Sampling
from ..museum.museum import Museum
from ..pictures import Size
from .progress import Say

if TYPE_CHECKING:  # diffusers is optional: commands that open no model do without it
    from ..over_diffusers.base import DiffusersBase


def add_base(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--base and the options for opening it."""
    parser.add_argument("--base", required=required, help="'starter', a diffusers folder, or a .safetensors checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="folder of CLIP's tokenizer, to open a checkpoint offline")
    parser.add_argument("--prediction", choices=["epsilon", "v_prediction"], help="of an SD2 checkpoint")
    parser.add_argument("--clip-skip", type=int, help="layer of the text encoders, counted from the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="of the frozen weights (%(default)s)")


def add_kind(parser: argparse.ArgumentParser) -> None:
    """--kind and --template."""
    templates = " or ".join(f'"{template}"' for template in TEMPLATES.values())
    parser.add_argument("--kind", choices=["object", "style"], default="object", help="of the concept (%(default)s)")
    parser.add_argument("--template", default="", help=f"prompt with the word ({templates}, depending on --kind)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """--steps, --guidance, --seed, --size."""
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance, 1 is off (7.5; 5 on the starter)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (the base's resolution)")


def sampling_of(arguments: argparse.Namespace, base: "DiffusersBase") -> tuple[Sampling, tuple[int, ...]]:
    """The settings from `add_sampling`'s options, and the shape of the latents of a square picture of that size."""
    guidance = base.family.guidance if arguments.guidance is None else arguments.guidance
    side = base.resolution_px if arguments.size is None else arguments.size
    return Sampling(arguments.steps, guidance, arguments.seed), base.latent_shape(side, side)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """--recipe. `recipe_named` refuses unknown names."""
    parser.add_argument(
        "--recipe",
        default=DEFAULT_METHOD,
        metavar="NAME",
        help=f"how to learn: {', '.join(RECIPES)} ({DEFAULT_METHOD}); or one of the baselines in docs/recipes.md",
    )


def tell_of_baseline(method: str, say: Say) -> None:
    """Tell the user if the method is a baseline."""
    if method in BASELINES:
        say(f"{method} is a baseline, kept for comparison.")


def open_chosen(arguments: argparse.Namespace) -> "DiffusersBase":
    """Open the model that the options name. Raises BaseModelError for a missing device before it reads the model."""
    from ..over_diffusers.base import open_base

    check_device(arguments.device)
    return open_base(
        arguments.base,
        dtype=DTYPES[arguments.dtype],
        device=arguments.device,
        tokenizer=arguments.tokenizer,
        prediction=arguments.prediction,
        clip_skip=arguments.clip_skip,
    )


def probed(device: torch.device) -> Device:
    """What a device offers. If its memory is unknown, it counts as enough."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device(torch.cuda.get_device_properties(device).total_memory, "bf16" if bf16 else "fp16")
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return Device(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "fp32")
    return Device(math.inf, "fp32")


def training_bytes(base: "DiffusersBase", recipe: Recipe, earlier: Museum, size: Size) -> int:
    """Approximate memory of a training step with pictures of that (height, width) in pixels, with the models."""
    *_, rows, columns = base.latent_shape(*size)
    computed = AUTOCAST[recipe.precision] or base.unet.dtype
    copied = copied_bytes(base.unet, computed.itemsize, lambda module: module.weight.dtype != computed)
    models = (base.unet, base.vae, *(encoder.model for encoder in base.encoders))
    held = sum(tensor.numel() * tensor.element_size() for model in models for tensor in model.parameters())
    return held + learning_bytes(
        base.family,
        base.slots,
        recipe,
        earlier,
        latent_pixels=rows * columns,
        copied_bytes=copied,
        read_bytes=base.unet.dtype.itemsize,
    )


def check_device(device: str) -> None:
    """Raise BaseModelError for a device that this computer does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BaseModelError(f"The device '{device}' cannot be used: {reason}") from error
