"""Make a loaded model differentiable for a while, and leave no trace of it.

ComfyUI is built to sample: it runs nodes under inference mode, adds in place, and computes with kernels that may have
no backward pass. Everything that stands in the way of gradients is put aside here, and put back in any case.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...clora_core.errors import BaseModelError


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Undo the inference mode that ComfyUI runs nodes under: tensors made in here can have gradients.

    `learn` has to be called in here, since what it trains is made before the model is asked for anything.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def differentiable(
    unet: nn.Module, text: nn.Module, *, dtype: torch.dtype, again: Callable[[], AbstractContextManager[None]] | None
) -> Iterator[None]:
    """While entered, gradients flow through both models to what they are given; their own weights are frozen.

    dtype: what the UNet computes in, whatever it is stored in. The models must be loaded already, and must not be
    moved or patched until the end. The caller sees to grad mode. again: for gradient checkpointing, what the blocks of
    the UNet run in when they are computed again on the way back, asked when they first run; None keeps all that they
    compute. The text encoders' layers always are computed again: what they would keep, their weights in float32 above
    all, is more than they are worth.
    """
    with ExitStack() as afterwards:
        for module in (*unet.modules(), *text.modules()):
            _freeze(module, afterwards)
        for module in unet.modules():
            _check_kernel(module)
            if _holds_another_dtype(module, dtype):
                _set(module, "comfy_cast_weights", True, afterwards)
            if again and isinstance(module, (ResBlock, BasicTransformerBlock)):
                _set(module, "forward", _Checkpointed(module.forward, again), afterwards)
        for module in text.modules():
            if isinstance(module, comfy.clip_model.CLIPLayer):
                for norm in (module.layer_norm1, module.layer_norm2):
                    afterwards.callback(norm.register_forward_pre_hook(_copy_input).remove)
                _set(module, "forward", _Checkpointed(_on_a_copy(module.forward)), afterwards)
        yield


def plain_attention(attention: Any, *inputs: Any, **options: Any) -> Tensor:
    """In place of the attention that ComfyUI chose, one that has a backward pass."""
    return attention_pytorch(*inputs, **options)


def harmless(patch: Any) -> Any:
    """A patch before an output block, which may write into what the backward pass needs of it, as FreeU's does."""

    def run(*inputs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.detach().clone(), lambda kept: kept):
            return patch(*inputs)

    return run


def _freeze(module: nn.Module, afterwards: ExitStack) -> None:
    """Evaluation mode, no gradients for weights, and no inference tensors among them.

    Inference tensors cannot take part in a backward pass, so each is replaced by an ordinary one over the same memory,
    which may stay: nothing else can tell them apart.
    """
    _set(module, "training", isinstance(module, comfy.ops.fp8_ops.Linear), afterwards)  # else it multiplies in fp8
    kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for tensors in kinds:
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.is_inference() and type(tensor.data) is Tensor:
                tensors[name] = _ordinary(tensor)
            if tensor.requires_grad:
                tensors[name].requires_grad_(False)
                afterwards.callback(_require_grad, tensors, name)


def _ordinary(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def _require_grad(tensors: dict[str, Tensor | None], name: str) -> None:
    tensor = tensors[name]
    if tensor is not None:
        with torch.inference_mode(tensor.is_inference()):
            tensor.requires_grad_(True)


def _set(module: nn.Module, name: str, value: object, afterwards: ExitStack) -> None:
    """Set an attribute of this one module; afterwards it is as it was, or gone if there was none."""
    if name in vars(module):
        afterwards.callback(vars(module).__setitem__, name, vars(module)[name])
    else:
        afterwards.callback(vars(module).pop, name, None)
    vars(module)[name] = value


def _holds_another_dtype(module: nn.Module, dtype: torch.dtype) -> bool:
    held = {tensor.dtype for tensor in module.parameters(recurse=False) if tensor.dtype.is_floating_point}
    return isinstance(module, comfy.ops.CastWeightBiasOp) and bool(held - {dtype})


def _check_kernel(module: nn.Module) -> None:
    scale = getattr(module, "scale_input", None)
    if isinstance(scale, Tensor) and comfy.model_management.supports_fp8_compute(scale.device):
        raise BaseModelError(
            f"This model multiplies in float8 ({type(module).__name__} with a scale for its input), which has no "
            "backward pass. Load it with another weight dtype, or without fp8 optimizations."
        )


def _copy_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """CLIP's layers add to a tensor in place that their norms still need for the way back; these get a copy."""
    return (inputs[0].clone(), *inputs[1:])


def _on_a_copy(forward: Any) -> Any:
    """The layer adds to its input in place, which would be added to once more on the way back."""

    def run(states: Tensor, *inputs: Any, **options: Any) -> Tensor:
        return forward(states.clone(), *inputs, **options)

    return run


class _Checkpointed:
    """A forward that keeps nothing but its inputs, and runs again on the way back."""

    def __init__(self, forward: Any, again: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.forward, self.again = forward, again

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if "transformer_options" in options:  # written to along the way; the second run must read what the first did
            options["transformer_options"] = dict(options["transformer_options"])
        contexts = nullcontext(), self.again()
        kept = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: contexts}
        return checkpoint(self.forward, *inputs, **kept, **options)
