"""Tell models apart beyond their fingerprint: text encoders and VAEs, LoRAs and other patches.

A result depends on all of them, so it may only be reused if all of them are the same. LoRAs and other values can be
read. A patch that is a function cannot, because its closure is unknown, so the result is not stored.
"""

import hashlib
from collections.abc import Mapping, Sequence

import comfy.sd
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor
from torch.nn import Module, Parameter

from ...clora_core.model.concept import ConceptToken
from ...clora_core.seeds import bytes_of
from ..log import log
from .model import ModelPatcher, original
from .words import known_words

PATCHES = (
    *("patches", "object_patches", "weight_wrapper_patches", "hook_patches"),
    *("wrappers", "callbacks", "injections", "additional_models"),
)
SAMPLES = 16  # numbers read from every weight
MOST = 100_000  # values read from the patches of a model
DEEPEST = 50


def models_digest(model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> str | None:
    """A digest of samples of all weights and of all patches. None if a patch cannot be read."""
    digest = _Digest()
    try:
        for patcher in (model, clip.patcher, vae.patcher):
            digest.add(patcher)
        digest.add(clip.layer_idx)
        digest.add(known_words(clip))
        if options := getattr(clip, "tokenizer_options", None):
            digest.add(options)
        digest.add(model.get_model_object("model_sampling").sigmas.cpu())
    except _UnreadableError as error:
        log.warning("C-LoRA: the result is not stored, because another node's patch cannot be read (%s).", error)
        return None
    return digest.hash.hexdigest()


class _UnreadableError(Exception):
    """A value may have hidden state."""


class _Digest:
    """Digests values by content, never by memory address."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._budget = MOST

    def add(self, value: object, depth: int = 0) -> None:
        """Raises _UnreadableError for anything but plain values, such as a function."""
        self._budget -= 1
        if self._budget < 0 or depth > DEEPEST:
            raise _UnreadableError(f"more than {MOST} values, or deeper than {DEEPEST}")
        kind = ModelPatcher if isinstance(value, ModelPatcher) else type(value)  # its subclasses count as one kind
        self._hash(kind.__qualname__)
        match value:
            case None | bool() | int() | float() | str() | torch.dtype():
                self._hash(repr(value))
            case Tensor() if type(value) in (Tensor, Parameter):
                self._hash(value.dtype, tuple(value.shape))
                self.hash.update(bytes_of(value))
            case Mapping():
                self._all([part for item in value.items() for part in item], depth)
            case list() | tuple():
                self._all(value, depth)
            case set() | frozenset():
                self._all(sorted(map(str, value)), depth)
            case ModelPatcher():
                self._patcher(value, depth)
            case WeightAdapterBase() if type(value).__module__.startswith("comfy.weight_adapter."):
                self._all([value.name, value.weights], depth)  # without the keys of its whole file
            case Module() if type(value).__module__.startswith("comfy"):
                names = [name for name in vars(value) if name != "training" and not name.startswith("_")]
                attributes = {name: vars(value)[name] for name in names}
                self._all([attributes, dict(value.named_buffers()), dict(value.named_parameters())], depth)
            case ConceptToken():
                self._all([value.word, value.vectors, *filter(None, [value.phrase])], depth)
            case _:
                raise _UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")

    def _patcher(self, patcher: ModelPatcher, depth: int) -> None:
        parameters = dict(patcher.model.named_parameters())
        for name, current in patcher.model.state_dict().items():
            if name.startswith("model_sampling."):  # the noise schedule may be another clone's at the moment
                continue
            if current.is_meta and (current := parameters.get(name)) is None:  # the state dict of a GGUF model is empty
                continue
            weight = original(patcher, name, current)
            flat = weight.detach().flatten()
            sampled = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.float32)
            stored = weight.dtype if weight.dim() else "scalar"  # newer versions of ComfyUI change its dtype on load
            self._hash(name, stored, tuple(weight.shape), sampled.tolist())
        patches = [{key: entry for key, entry in getattr(patcher, kind).items() if entry} for kind in PATCHES]
        self._all([*patches, patcher.model_options["transformer_options"]], depth)

    def _all(self, values: Sequence[object], depth: int) -> None:
        self._hash(len(values))
        for part in values:
            self.add(part, depth + 1)

    def _hash(self, *texts: object) -> None:
        self.hash.update("\0".join(map(str, texts)).encode() + b"\n")
