"""AdamW for deltas and words (or a head), with separate learning rates, and its state for resuming."""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ..method.recipe import Recipe

TOKEN_RATE = ("token.", "head.")  # names of parameters with the token_learning_rate


class Trainable(Protocol):
    """The parameters that the loop trains."""

    def parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by a name that is the same in every run."""
        ...

    def settle(self) -> None:
        """Called after every update."""
        ...


class Optimizer:
    """Gathers gradients over `accumulation` batches, then updates once.

    computed_in: the dtype that gradients come through; float16 gets loss scaling, since small ones would be lost.
    """

    def __init__(self, trained: Trainable, recipe: Recipe, device: torch.device, computed_in: torch.dtype) -> None:
        self.recipe = recipe
        self.named = trained.parameters()
        words = [value for name, value in self.named.items() if name.startswith(TOKEN_RATE)]
        factors = [value for name, value in self.named.items() if not name.startswith(TOKEN_RATE)]
        self.adamw = torch.optim.AdamW(
            [
                {"params": factors, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
                {"params": words, "lr": recipe.token_learning_rate, "weight_decay": 0.0},
            ]
        )
        self.full_rates = [group["lr"] for group in self.adamw.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=computed_in == torch.float16)

    def gather(self, loss: Tensor) -> None:
        """Add one batch's gradients."""
        self.scaler.scale(loss / self.recipe.accumulation).backward()

    def update(self, index: int) -> bool:
        """Clip the gradient, update the parameters, clear the gradient.

        Returns False, without an update, if the gradient is not finite; in float16 only if no loss scale above 1 helps.
        """
        for group, rate in zip(self.adamw.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(self.recipe, index)
        self.scaler.unscale_(self.adamw)
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.recipe.clip_norm)
        if not (norm.isfinite() or self.scaler.is_enabled()):
            return False
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return self.scaler.get_scale() >= 1

    def memory(self) -> dict[str, Tensor]:
        """Its state as tensors by name, on the CPU."""
        memory = {
            f"{name}.{key}": value.detach().cpu().clone()
            for name, parameter in self.named.items()
            for key, value in self.adamw.state[parameter].items()
        }
        if self.scaler.is_enabled():
            memory["scale"] = torch.tensor(
                [self.scaler.get_scale(), float(self.scaler.state_dict()["_growth_tracker"])]
            )
        return memory

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of all that `memory()` may return, float32."""
        shapes = {f"{name}.step": torch.Size(()) for name in self.named}
        for name, parameter in self.named.items():
            shapes |= {f"{name}.exp_avg": parameter.shape, f"{name}.exp_avg_sq": parameter.shape}
        return shapes | ({"scale": torch.Size((2,))} if self.scaler.is_enabled() else {})

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Restore what `memory()` returned."""
        for name, parameter in self.named.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := memory.get(f"{name}.{key}")) is not None:
                    place = "cpu" if key == "step" else parameter.device
                    self.adamw.state[parameter][key] = value.clone().to(place)
        if self.scaler.is_enabled() and "scale" in memory:
            scale, growth = memory["scale"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})


def learning_rate_factor(recipe: Recipe, index: int) -> float:
    """The share of the full rate at update `index`: a linear warm-up, then constant, cosine or linear to zero."""
    warm = round(recipe.warmup * recipe.steps)
    if index < warm:
        return (index + 1) / warm
    done = (index - warm) / max(1, recipe.steps - warm)
    match recipe.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
    return 1.0
