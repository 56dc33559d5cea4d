"""The training loop of the starter's own networks. It can be resumed at any step."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_EVERY_S = 300
WARMUP_STEPS = 200


def train_network(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    checkpoint: Path,
    *,
    steps: int,
    lr: float,
    decay_from: float,
    ema: float,
    on_checkpoint: Callable[[nn.Module], None],
    weight_decay: float = 1e-3,
) -> None:
    """AdamW with a warm-up, a constant rate, and a linear decay to zero. `loss` depends on the step's number only.

    At the end, `model` has the averaged weights. `on_checkpoint` is called with them, also every five minutes.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    start = _resume(checkpoint, model, optimizer, average)
    progress = tqdm(range(start, steps), checkpoint.stem, initial=start, total=steps, mininterval=10)
    saved, recent = time.monotonic(), 0.0
    for step in progress:
        for group in optimizer.param_groups:
            falling = (steps - step) / (steps * (1 - decay_from))
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP_STEPS, falling)
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name].lerp_(parameter, 1 - min(ema, (step + 1) / (step + 10)))
        recent = value.item() if step == start else 0.99 * recent + 0.01 * value.item()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{recent:.4f}")
        if time.monotonic() - saved > CHECKPOINT_EVERY_S:
            _save(checkpoint, model, optimizer, average, step + 1)
            trained = {name: value.detach().clone() for name, value in model.named_parameters()}
            _assign(model, average)
            on_checkpoint(model)
            _assign(model, trained)
            saved = time.monotonic()
    _save(checkpoint, model, optimizer, average, steps)
    _assign(model, average)
    on_checkpoint(model)


def built_with_seed(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A module whose random initial weights depend on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def save_half(module: nn.Module, path: Path) -> None:
    """Write a module's tensors as float16."""
    partial = path.with_suffix(".partial")
    save_file({name: value.half().contiguous().cpu() for name, value in module.state_dict().items()}, partial)
    partial.replace(path)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"model.{name}": parameter.detach(), f"average.{name}": average[name]}
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, partial)
    partial.replace(path)


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    if not path.exists():
        return 0
    tensors = load_file(path)
    _assign(model, {name: tensors[f"model.{name}"] for name in average})
    for name, parameter in model.named_parameters():
        average[name].copy_(tensors[f"average.{name}"])
        keys = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[parameter] = {key: tensors[f"optimizer.{name}.{key}"].to(parameter.device) for key in keys}
        optimizer.state[parameter]["step"] = optimizer.state[parameter]["step"].cpu()
    return int(tensors["step"])


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
