"""Make a loaded model differentiable for a while, and restore it afterwards.

ComfyUI is built for sampling: it runs nodes in inference mode, adds in place, and uses kernels that may have no
backward pass. This module removes whatever blocks gradients, and always restores it.
"""

import sys
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
    """Leave the inference mode in which ComfyUI runs nodes: tensors created here can have gradients.

    Call `learn` in here, because it creates its parameters before it runs the model.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def differentiable(
    unet: nn.Module, text: nn.Module, *, dtype: torch.dtype, again: Callable[[], AbstractContextManager[None]] | None
) -> Iterator[None]:
    """While entered, gradients flow through both models to their inputs; their own weights are frozen.

    dtype: the UNet computes in it, however it is stored. The models must be loaded, and must not be moved or patched
    until the end. The caller sets the grad mode. again: for gradient checkpointing, returns the context in which a
    UNet block is recomputed during the backward pass; called when the block first runs. None turns checkpointing off.
    The text encoders' layers are always checkpointed: otherwise they would keep, above all, their weights in float32.
    """
    with ExitStack() as afterwards:
        _prepare(unet, text, dtype, afterwards)
        for module in unet.modules():
            if again and isinstance(module, (ResBlock, BasicTransformerBlock)):
                _set(module, "forward", _Checkpointed(module.forward, again), afterwards)
        for module in text.modules():
            if isinstance(module, comfy.clip_model.CLIPLayer):
                for norm in (module.layer_norm1, module.layer_norm2):
                    afterwards.callback(norm.register_forward_pre_hook(_copy_input).remove)
                _set(module, "forward", _Checkpointed(_on_a_copy(module.forward)), afterwards)
        yield


@contextmanager
def differentiable_transformer(
    network: nn.Module, text: nn.Module, *, dtype: torch.dtype, again: Callable[[], AbstractContextManager[None]] | None
) -> Iterator[None]:
    """`differentiable` for diffusion transformers, and for T5 and LLM text encoders.

    Their blocks add to a tensor in place after a norm has read it: the norms get a copy. With checkpointing, the
    members of the network's lists of blocks run again in the backward pass.
    """
    with ExitStack() as afterwards:
        _prepare(network, text, dtype, afterwards)
        _rotate_with_torch(afterwards)
        for module in (*network.modules(), *text.modules()):
            if "Norm" in type(module).__name__:
                afterwards.callback(module.register_forward_pre_hook(_copy_input).remove)
        for blocks in network.children() if again else ():
            for block in blocks if isinstance(blocks, nn.ModuleList) else ():
                _set(block, "forward", _Checkpointed(_on_a_copy(block.forward), again), afterwards)
        yield


def plain_attention(attention: Any, *inputs: Any, **options: Any) -> Tensor:
    """An attention with a backward pass, instead of the one that ComfyUI chose."""
    return attention_pytorch(*inputs, **options)


def harmless(patch: Any) -> Any:
    """Wrap a patch of an output block that may overwrite tensors that its backward pass needs, as FreeU's does."""

    def run(*inputs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda tensor: tensor):
            return patch(*inputs)

    return run


def _prepare(network: nn.Module, text: nn.Module, dtype: torch.dtype, afterwards: ExitStack) -> None:
    """Freeze both; the network computes in this dtype."""
    for module in (*network.modules(), *text.modules()):
        _freeze(module, afterwards)
    for module in network.modules():
        _check_kernel(module)
        if _holds_another_dtype(module, dtype):
            _set(module, "comfy_cast_weights", True, afterwards)


def _freeze(module: nn.Module, afterwards: ExitStack) -> None:
    """Evaluation mode, no gradients for weights, and no inference tensors.

    A backward pass cannot use inference tensors, so each is replaced by an ordinary tensor over the same memory. These
    stay afterwards: they behave the same.
    """
    _set(module, "training", isinstance(module, comfy.ops.fp8_ops.Linear), afterwards)  # or it multiplies in fp8
    kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for tensors in kinds:
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.is_inference() and type(tensor.data).__torch_dispatch__ == Tensor.__torch_dispatch__:
                tensors[name] = _ordinary(tensor)
            if tensor.requires_grad:
                tensors[name].requires_grad_(False)
                afterwards.callback(_require_grad, tensors, name)


def _ordinary(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        kind = type(tensor.data)
        if kind is Tensor:
            return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias
        alias = alias.as_subclass(kind)  # such as a weight of a GGUF model
        vars(alias).update(vars(tensor))
        return alias


def _require_grad(tensors: dict[str, Tensor | None], name: str) -> None:
    tensor = tensors[name]
    if tensor is not None:
        with torch.inference_mode(tensor.is_inference()):
            tensor.requires_grad_(True)


def _rotate_with_torch(afterwards: ExitStack) -> None:
    """Replace comfy-kitchen's rotary embeddings, which have no backward pass; newer hosts have a switch for it."""
    if hasattr(comfy.model_management, "in_training"):
        _set(comfy.model_management, "in_training", True, afterwards)
    for name, module in list(sys.modules.items()):
        for rotation in (apply_rope, apply_rope1) if name.startswith("comfy.ldm.") else ():
            current = vars(module).get(rotation.__name__)
            if current is not None and current.__module__.startswith("comfy_kitchen"):
                _set(module, rotation.__name__, rotation, afterwards)


def apply_rope(queries: Tensor, keys: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    return apply_rope1(queries, rotations), apply_rope1(keys, rotations)


def apply_rope1(x: Tensor, rotations: Tensor) -> Tensor:
    """The pairs of numbers in x (…, d), rotated by matrices (…, d/2, 2, 2) in these' dtype."""
    pairs = x.to(rotations.dtype).unflatten(-1, (-1, 1, 2))
    return (rotations * pairs).sum(-1).flatten(-2).type_as(x)


def _set(module: object, name: str, value: object, afterwards: ExitStack) -> None:
    """Set an attribute of this module; afterwards restore its value, or delete it if it was not set."""
    if name in vars(module):
        afterwards.callback(vars(module).__setitem__, name, vars(module)[name])
    else:
        afterwards.callback(vars(module).pop, name, None)
    vars(module)[name] = value


def _holds_another_dtype(module: nn.Module, dtype: torch.dtype) -> bool:
    dtypes = {tensor.dtype for tensor in module.parameters(recurse=False) if tensor.dtype.is_floating_point}
    return isinstance(module, comfy.ops.CastWeightBiasOp) and bool(dtypes - {dtype})


def _check_kernel(module: nn.Module) -> None:
    scale = getattr(module, "scale_input", None)
    if isinstance(scale, Tensor) and comfy.model_management.supports_fp8_compute(scale.device):
        raise BaseModelError(
            f"This model multiplies in float8 ({type(module).__name__} with a scale for its input), which has no "
            "backward pass. Load it with another weight dtype, or without fp8 optimizations."
        )


def _copy_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """CLIP's layers add in place to a tensor that their norms need for the backward pass; the norms get a copy."""
    return (inputs[0].clone(), *inputs[1:])


def _on_a_copy(forward: Any) -> Any:
    """The layer adds to its inputs in place; recomputing it in the backward pass must not add twice."""

    def run(*inputs: Any, **options: Any) -> Any:
        def copied(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else value

        return forward(*map(copied, inputs), **{name: copied(value) for name, value in options.items()})

    return run


class _Checkpointed:
    """A forward that only stores its inputs, and runs again in the backward pass."""

    def __init__(self, forward: Any, again: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.forward, self.again = forward, again

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if "transformer_options" in options:  # blocks write to it; both runs must read the same
            options["transformer_options"] = dict(options["transformer_options"])
        contexts = nullcontext(), self.again()
        settings = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": lambda: contexts}
        return checkpoint(self.forward, *inputs, **settings, **options)
