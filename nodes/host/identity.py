"""Tell models apart beyond their fingerprint: other text encoders and VAEs, LoRAs and settings put on beforehand.

What is learned depends on all of that, so a result may only be taken from the store where all of it is the same.
Most settings are functions that ComfyUI calls while the model runs, so what these hold on to is read as well.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType

import comfy.model_patcher
import comfy.sd
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import Module, Parameter

from ..log import log
from .words import known_words

ModelPatcher = comfy.model_patcher.ModelPatcher
PUT_ON = (
    *("patches", "object_patches", "weight_wrapper_patches", "hook_patches"),
    *("wrappers", "callbacks", "injections", "additional_models"),
)
SAMPLES = 16  # numbers read of every weight
MOST = 100_000  # values read of what is put on a model
DEEPEST = 100


def identity(model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> str | None:
    """A digest of samples of all weights and of all that is put on them. None where something there cannot be read."""
    digest = _Digest()
    try:
        for patcher in (model, clip.patcher, vae.patcher):
            digest.add(patcher)
        digest.add(clip.layer_idx)
        digest.add(known_words(clip))
        digest.add(model.get_model_object("model_sampling").sigmas.cpu())
    except _UnreadableError as error:
        log.warning("C-LoRA: what is put on this model cannot be told from other settings of it (%s).", error)
        return None
    return digest.hash.hexdigest()


class _UnreadableError(Exception):
    """A value holds more than it shows."""


class _Digest:
    """Reads values by what they are made of, never by where they lie."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._open: list[int] = []  # what is being read, from the outside in
        self._left = MOST
        self._own: dict[int, str] = {}  # modules whose weights are read anyhow

    def add(self, value: object) -> None:
        """Raises _UnreadableError for what shows nothing of its state, such as a generator or a lock."""
        if id(value) in self._open:
            return self._say("above", len(self._open) - self._open.index(id(value)))
        self._left -= 1
        if self._left < 0 or len(self._open) > DEEPEST:
            raise _UnreadableError(f"more than {MOST} values, or deeper than {DEEPEST}")
        self._open.append(id(value))
        self._read(value)
        self._open.pop()

    def _read(self, value: object) -> None:
        self._say("ModelPatcher" if isinstance(value, ModelPatcher) else type(value).__qualname__)  # of any kind
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes():
                self._say(repr(value))
            case Tensor() if type(value) in (Tensor, Parameter):
                self._say(value.dtype, tuple(value.shape))
                self.hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            case dict():
                self._all(part for item in value.items() for part in item)
            case list() | tuple():
                self._all(value)
            case set() | frozenset():
                self._say(*sorted(_digest_of(part) for part in value))
            case ModelPatcher():
                self._patcher(value)
            case WeightAdapterBase() if type(value).__module__.startswith("comfy.weight_adapter."):
                self._all([value.name, value.weights])  # not the keys of the whole file that it came from
            case Module() if id(value) in self._own:
                self._say(self._own[id(value)])
            case type() | ModuleType():
                self._say(getattr(value, "__module__", ""), value.__name__)
            case FunctionType():
                kept = (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__, vars(value))
                self._all([value.__module__, value.__qualname__, *kept])
            case CodeType():
                self._all([value.co_code, value.co_consts, value.co_names])
            case CellType():
                self._all(_contents(value))
            case MethodType():
                self._all([value.__self__, value.__func__])
            case partial():
                self._all([value.func, value.args, value.keywords])
            case _:
                self._object(value)

    def _patcher(self, patcher: ModelPatcher) -> None:
        for name, weight in _own_weights(patcher):
            flat = weight.detach().flatten()
            sampled = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.float32)
            stored = weight.dtype if weight.dim() else "scalar"  # of any dtype: newer ComfyUIs change it when they load
            self._say(name, stored, tuple(weight.shape), sampled.tolist())
        self._own |= {id(module): name for name, module in patcher.model.named_modules()}
        for kind in PUT_ON:
            self.add({key: put_on for key, put_on in getattr(patcher, kind).items() if put_on})
        self.add(patcher.model_options["transformer_options"])

    def _object(self, value: object) -> None:
        """Any other object, as `copy` would take it apart."""
        try:
            taken = value.__reduce_ex__(4)
        except Exception as error:  # others' code, which may raise what it likes
            raise _UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}: {error}") from error
        if isinstance(taken, str):
            self._say(taken)
        else:
            made_by, arguments, *state = taken
            self._all([made_by, arguments, *(list(part) if isinstance(part, Iterator) else part for part in state)])

    def _all(self, values: Iterable[object]) -> None:
        parts = list(values)
        self._say(len(parts))
        for part in parts:
            self.add(part)

    def _say(self, *texts: object) -> None:
        self.hash.update("\0".join(map(str, texts)).encode() + b"\n")


def _digest_of(value: object) -> str:
    digest = _Digest()
    digest.add(value)
    return digest.hash.hexdigest()


def _contents(cell: CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that has no value yet
        return []


def _own_weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Every weight as it was loaded, also where a patch is merged into it just now."""
    for name, weight in patcher.model.state_dict().items():
        if name in patcher.hook_backup:
            weight = patcher.hook_backup[name][0]
        elif name in patcher.backup:
            weight = patcher.backup[name].weight
        yield name, weight
