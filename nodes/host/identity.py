"""Tell models apart beyond their fingerprint: other text encoders and VAEs, LoRAs and settings put on beforehand.

What is learned depends on all of that, so a result may only be taken from the store where all of it is the same. LoRAs
and other values are read. A patch that is a function is not: what it holds on to cannot be known, so nothing is kept.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import comfy.model_patcher
import comfy.sd
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import Module, Parameter

from ...clora_core.model.concept import ConceptToken
from ..log import log
from .words import known_words

ModelPatcher = comfy.model_patcher.ModelPatcher
PUT_ON = (
    *("patches", "object_patches", "weight_wrapper_patches", "hook_patches"),
    *("wrappers", "callbacks", "injections", "additional_models"),
)
SAMPLES = 16  # numbers read of every weight
MOST = 100_000  # values read of what is put on a model
DEEPEST = 50


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
        log.warning("C-LoRA: nothing is kept, since what another node put on this model cannot be read (%s).", error)
        return None
    return digest.hash.hexdigest()


class _UnreadableError(Exception):
    """A value may hold more than it shows."""


class _Digest:
    """Reads values by what they are made of, never by where they lie."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._left = MOST

    def add(self, value: object, depth: int = 0) -> None:
        """Raises _UnreadableError for all that is no plain value, such as a function."""
        self._left -= 1
        if self._left < 0 or depth > DEEPEST:
            raise _UnreadableError(f"more than {MOST} values, or deeper than {DEEPEST}")
        self._say("ModelPatcher" if isinstance(value, ModelPatcher) else type(value).__qualname__)  # of any kind
        match value:
            case None | bool() | int() | float() | str():
                self._say(repr(value))
            case Tensor() if type(value) in (Tensor, Parameter):
                self._say(value.dtype, tuple(value.shape))
                self.hash.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            case Mapping():
                self._all([part for item in value.items() for part in item], depth)
            case list() | tuple():
                self._all(value, depth)
            case set() | frozenset():
                self._all(sorted(map(str, value)), depth)
            case ModelPatcher():
                self._patcher(value, depth)
            case WeightAdapterBase() if type(value).__module__.startswith("comfy.weight_adapter."):
                self._all([value.name, value.weights], depth)  # not the keys of the whole file that it came from
            case Module() if type(value).__module__.startswith("comfy"):
                own = {
                    name: part for name, part in vars(value).items() if name != "training" and not name.startswith("_")
                }
                self._all([own, dict(value.named_buffers()), dict(value.named_parameters())], depth)
            case ConceptToken():
                self._all([value.word, value.vectors], depth)
            case _:
                raise _UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")

    def _patcher(self, patcher: ModelPatcher, depth: int) -> None:
        for name, weight in _own_weights(patcher):
            flat = weight.detach().flatten()
            sampled = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.float32)
            stored = weight.dtype if weight.dim() else "scalar"  # of any dtype: newer ComfyUIs change it when they load
            self._say(name, stored, tuple(weight.shape), sampled.tolist())
        put_on = [{key: kept for key, kept in getattr(patcher, kind).items() if kept} for kind in PUT_ON]
        self._all([*put_on, patcher.model_options["transformer_options"]], depth)

    def _all(self, values: Sequence[object], depth: int) -> None:
        self._say(len(values))
        for part in values:
            self.add(part, depth + 1)

    def _say(self, *texts: object) -> None:
        self.hash.update("\0".join(map(str, texts)).encode() + b"\n")


def _own_weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Every weight as it was loaded, also where a patch is merged into it just now.

    Without the noise schedule, which may be another clone's at the moment.
    """
    for name, weight in patcher.model.state_dict().items():
        if name.startswith("model_sampling."):
            continue
        if name in patcher.hook_backup:
            weight = patcher.hook_backup[name][0]
        elif name in patcher.backup:
            weight = patcher.backup[name].weight
        yield name, weight
