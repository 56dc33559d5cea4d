"""A second device on a machine that has but one: its tensors lie in ordinary memory, yet mix with no others.

With a CPU alone, code that forgets to move a tensor works all the same, and breaks on the first graphics card. Here it
breaks too: an operation on tensors of both devices raises, as on CUDA, and so does one in float64, as on Apple's
cards. Only copies go across, and tensors without dimensions. But for rounding, nothing else is computed differently.

Once the device has been entered, torch takes it for this process's accelerator, so tests do that in a process of their
own.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "there"
TESTS = Path(__file__).parent
MISSING = (
    ""
    if hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
    else "this torch knows no devices that are written in Python"
)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
WHOLE = {aten.scaled_dot_product_attention.default}  # done as it is, not by the operations it is made of


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device for the duration of the block. Raises if the block did not use it."""
    _register()
    with _Operations() as operations:
        yield torch.device(NAME, 0)
    assert operations.done, "nothing was computed on the device"


@contextmanager
def own_process() -> Iterator[Callable[..., Any]]:
    """`call(work, *given)` does the work in one other process, and raises what it raises.

    That process looks for modules where pytest names ours from, and not in a ComfyUI, which has `tests` of its own.
    """
    others = [folder for folder in sys.path if not Path(folder, "tests/__init__.py").exists()]
    spawning = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", [str(TESTS.parent), str(TESTS), *others])
        with ProcessPoolExecutor(1, spawning, _register) as pool:  # before a backward pass, which counts the devices
            yield lambda work, *given: pool.submit(work, *given).result()


class _There(Tensor):
    """A tensor on the device, around the ordinary one that it really is."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "_There":
        with torch.inference_mode(False):  # whose tensors torch wraps less well
            return Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=f"{NAME}:0",
            )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"{NAME}: {self.inner!r}"

    def __reduce_ex__(self, protocol: int) -> Any:
        return _There, (self.inner,)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _done(operation, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not (_is_there(kwargs.get("device")) or any(issubclass(kind, _There) for kind in types)):
            return operation(*args, **kwargs)
        if operation not in WHOLE and _made_of_others(operation):  # which is so under inference mode alone
            with self:
                return operation.decompose(*args, **kwargs)
        self.done += 1
        return _done(operation, args, kwargs)


def _done(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, _There) for tensor in tensors)
    if operation not in COPIES and there and any(t.dim() for t in tensors if not isinstance(t, _There)):
        raise RuntimeError(f"{operation} was given tensors of two devices: {[(t.shape, t.device) for t in tensors]}")
    if there and kwargs.get("dtype") == torch.float64:
        raise TypeError(f"{operation} was asked for float64, which this device does not have, nor copies into")
    asked = kwargs.get("device")
    inner = dict(tree_map(_inner, kwargs)) | ({} if asked is None else {"device": "cpu"})
    result = operation(*tree_map(_inner, args), **inner)
    if operation is aten.copy_.default:
        return args[0]
    if not (there if asked is None else _is_there(asked)):
        return result
    return return_and_correct_aliasing(operation, args, kwargs, tree_map(_outer, result))


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _There) else value


def _outer(value: Any) -> Any:
    return _There(value) if isinstance(value, Tensor) and not isinstance(value, _There) else value


def _is_there(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME  # type: ignore[arg-type]


def _made_of_others(operation: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")


class _Module:
    """What torch asks `torch.there` for."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


@cache
def _register() -> torch.library.Library:
    """Tell torch of the device, and of the three operations that it does not send through `_Operations`."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")  # gone, it would take the operations with it

    def empty(size, *, dtype=None, **options):
        return _There(torch.empty(size, dtype=dtype))

    def empty_strided(size, stride, *, dtype=None, **options):
        return _There(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source, target, non_blocking=False):
        _inner(target).copy_(_inner(source))
        return target

    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library
