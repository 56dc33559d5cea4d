"""Tell models apart beyond their fingerprint: other text encoders and VAEs, LoRAs and settings put on beforehand.

What is learned depends on all of that, so a result may only be taken from the store where all of it is the same.
"""

import hashlib
from collections.abc import Iterator

import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

ModelPatcher = comfy.model_patcher.ModelPatcher
SAMPLES = 16  # numbers read of every weight


def identity(model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> str:
    """A digest of samples of all weights, of what is patched onto them, and of the settings that carry names."""
    digest = hashlib.sha256()
    for patcher in (model, clip.patcher, vae.patcher):
        for name, weight in _own_weights(patcher):
            _add(digest, [name, weight])
        for key in sorted(patcher.patches, key=str):
            _add(digest, [str(key), patcher.patches[key]])
        _add(digest, sorted((name, type(value).__name__) for name, value in patcher.object_patches.items()))
    _add(digest, clip.layer_idx)
    _add(digest, model.get_model_object("model_sampling").sigmas)
    return digest.hexdigest()


def _own_weights(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Every weight as it was loaded, also where a patch is merged into it just now."""
    for name, weight in patcher.model.state_dict().items():
        if name in patcher.hook_backup:
            weight = patcher.hook_backup[name][0]
        elif name in patcher.backup:
            weight = patcher.backup[name].weight
        yield name, weight


def _add(digest, value: object) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].to("cpu", torch.float32)
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(sampled.numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, (str, int, float)) or value is None:
        digest.update(repr(value).encode())
    else:  # a weight adapter, or a function
        digest.update(getattr(value, "__qualname__", type(value).__qualname__).encode())
        _add(digest, getattr(value, "weights", None))
