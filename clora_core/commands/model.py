"""The options by which every command that needs a model finds it."""

import argparse
from pathlib import Path

import torch

from ..errors import BaseModelError
from ..over_diffusers.base import DiffusersBase, open_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_base(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--base and what belongs to it."""
    parser.add_argument("--base", required=required, help="'starter', a diffusers folder, or a .safetensors checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="folder of CLIP's tokenizer, for a checkpoint without network")
    parser.add_argument("--prediction", choices=["epsilon", "v_prediction"], help="what an SD2 checkpoint predicts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="fp32", help="how the frozen weights are held (fp32)"
    )


def open_chosen(arguments: argparse.Namespace) -> DiffusersBase:
    """The model that the options name. Raises BaseModelError where the device is not there, before anything is read."""
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise BaseModelError(f"The device '{arguments.device}' cannot be used: {reason}") from error
    return open_base(
        arguments.base,
        dtype=DTYPES[arguments.dtype],
        device=arguments.device,
        tokenizer=arguments.tokenizer,
        prediction=arguments.prediction,
    )
