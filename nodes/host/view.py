"""Let a model and its CLIP show a museum: clones, and what comes in stays as it was.

    W·x + Σ_i strength_i · up_i·(down_i·x)          on every projection, in one of two ways

Where the weights are float32 or float16 when the model runs, all exhibits are one low-rank patch per weight, which
ComfyUI merges when it loads the model; a sampling step then costs what it always did. Where they are coarser (bfloat16,
float8, quantized) rounding the sum would eat small deltas, so they stay beside the weights and are added to their
outputs while the UNet runs. Exhibits applied at their word only are never merged: `gates.py`.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...clora_core.errors import BaseModelError, MuseumError
from ...clora_core.model.layers import check_layers, layer_numbers
from ...clora_core.model.low_rank import LowRank
from ...clora_core.model.projections import Projection
from ...clora_core.museum.museum import Exhibit, Museum
from .adding import Adding
from .gates import Gated, put_gates, take_gates
from .model import PREFIX, ModelPatcher, fingerprint_of, own_weight, projection_paths, run_dtype, stored_dtype, unet_of
from .words import CLIP, with_words, without_words

KEY = "clora.museum"
MERGED = (torch.float32, torch.float16)
EXACT = (torch.float32, torch.float16, torch.bfloat16)  # what base models are published in


def view(
    model: ModelPatcher, clip: CLIP, museum: Museum, strengths: Mapping[str, float] | None = None
) -> tuple[ModelPatcher, CLIP]:
    """Clones that show the museum, each exhibit at its strength (1 if not given), and understand its words.

    A model that views this museum already, or an earlier state of it, views it once afterwards. Raises BaseModelError
    for one that views another museum, and for one that the museum does not belong to.
    """
    strengths = {museum.exhibit(word).word: float(strength) for word, strength in (strengths or {}).items()}
    seen = _view_of(model)
    if seen is not None and seen.strengths == strengths and same_museum(seen.museum, museum):
        return model, with_words(clip, museum.tokens)
    model, clip = base_beneath(model, clip, museum)
    deltas = _deltas(model, museum, strengths)
    model = model.clone()
    merged = {path: delta for path, delta in deltas.items() if _run_dtype(model, path) in MERGED}
    patches = {
        f"{PREFIX}{path}.weight": LoRAAdapter(set(), (delta.up, delta.down, None, None, None, None))
        for path, delta in merged.items()
    }
    if lost := set(patches) - set(model.add_patches(patches)):
        raise BaseModelError(f"ComfyUI did not take the patch of '{min(lost)}', so the museum would not be whole.")
    if beside := {path: delta for path, delta in deltas.items() if path not in merged}:
        running = _Beside({path: Adding(delta) for path, delta in beside.items()})
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, running)
        model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, running.forget)
    gated = [_gated(model, exhibit, strengths.get(exhibit.word, 1.0)) for exhibit in museum.gated]
    layers = _layers(model, museum)
    if gated or layers:
        put_gates(model, gated, layers)
    model.set_attachments(KEY, _View(museum, strengths, patches))
    return model, with_words(clip, museum.tokens)


def viewed(model: ModelPatcher) -> Museum | None:
    """The museum that a model views. The model's clones view it too, whatever else is put on them."""
    seen = _view_of(model)
    return None if seen is None else seen.museum


def base_beneath(model: ModelPatcher, clip: CLIP, museum: Museum | None = None) -> tuple[ModelPatcher, CLIP]:
    """The model and the CLIP without the museum that the model views, but with all that others put on.

    museum: which museum that has to be, or become; raises BaseModelError for a model that views neither it nor an
    earlier state of it.
    """
    seen = _view_of(model)
    if seen is None:
        return model, clip
    if museum is not None and not _continues(museum, seen.museum):
        raise BaseModelError(
            f"This model already views another museum ({_named(seen.museum)}) than the one connected "
            f"({_named(museum)}). Connect the base model, or the model that came with this museum."
        )
    base = model.clone()
    base.patches = {
        key: left for key, found in model.patches.items() if (left := _others(found, seen.patches.get(key)))
    }
    base.add_patches({})  # so that ComfyUI sees that the patches are not what they were
    base.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    base.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    take_gates(base)
    base.remove_attachments(KEY)
    return base, without_words(clip, seen.museum.words)


def same_museum(a: Museum, b: Museum) -> bool:
    """Whether two museums hold the same words and numbers over the same base, in the same order."""
    return len(a.exhibits) == len(b.exhibits) and _continues(a, b)


@dataclass(frozen=True, eq=False)
class _View:
    """What `view` put on a model. patches: those that ComfyUI merges, by the weight's key."""

    museum: Museum
    strengths: Mapping[str, float]
    patches: Mapping[str, LoRAAdapter]


class _Beside:
    """A wrapper around the UNet's forward: while it runs, and no longer, the projections have hooks."""

    def __init__(self, hooks: Mapping[str, Adding]) -> None:
        self.hooks = hooks

    def __call__(self, unet_forward: Any, *inputs: Any, **options: Any) -> Tensor:
        with ExitStack() as handles:
            for path, hook in self.hooks.items():
                module: nn.Module = unet_forward.class_obj.get_submodule(path)
                handles.callback(module.register_forward_hook(hook).remove)
            return unet_forward(*inputs, **options)

    def forget(self, *ignored: Any) -> None:
        """Give back the memory on the device; ComfyUI calls this when it takes the model off it."""
        for hook in self.hooks.values():
            hook.forget()


def _view_of(model: ModelPatcher) -> _View | None:
    return model.attachments.get(KEY)


def _deltas(model: ModelPatcher, museum: Museum, strengths: Mapping[str, float]) -> dict[str, LowRank]:
    """path in the UNet → the stacked delta. Raises BaseModelError where museum and model do not belong together."""
    paths, base = projection_paths(model), fingerprint_of(model)
    exact = all(stored_dtype(own_weight(model, path)) in EXACT for path in paths.values())
    if exact or museum.base.family != base.family:
        museum.check_over(base)
    return _by_path(museum.deltas(strengths), paths)


def _run_dtype(model: ModelPatcher, path: str) -> torch.dtype | None:
    return run_dtype(unet_of(model).get_submodule(path), "weight", own_weight(model, path))


def _gated(model: ModelPatcher, exhibit: Exhibit, strength: float) -> Gated:
    assert exhibit.gate
    strength = exhibit.strength * strength
    deltas = {projection: delta.scaled(strength) for projection, delta in exhibit.deltas.items()}
    by_path = _by_path(deltas, projection_paths(model))
    return Gated(exhibit.gate, {path: Adding(delta) for path, delta in by_path.items()})


def _layers(model: ModelPatcher, museum: Museum) -> dict[str, int]:
    """path in the UNet → the number of its cross-attention, if any word of the museum is layer-wise."""
    paths = projection_paths(model)
    numbers = {paths[projection]: layer for projection, layer in layer_numbers(paths).items()}
    for token in museum.tokens:
        check_layers(token, len(set(numbers.values())))
    deep = any(len(vectors) > 1 for token in museum.tokens for vectors in token.vectors.values())
    return numbers if deep else {}


def _by_path(given: Mapping[Projection, LowRank], paths: Mapping[Projection, str]) -> dict[str, LowRank]:
    deltas: dict[str, LowRank] = {}
    for projection, delta in given.items():
        if projection not in paths:
            raise BaseModelError(
                f"The loaded model has no projection '{projection.path}' of shape {projection.shape}, which the museum "
                "changes. Load the museum's own base."
            )
        if delta.shape != projection.shape:
            raise MuseumError(
                f"The museum's delta of '{projection.path}' has shape {delta.shape}, not {projection.shape}. "
                "The museum is broken; load it again from its file."
            )
        deltas[paths[projection]] = delta
    return deltas


def _others(found: list[tuple], ours: LoRAAdapter | None) -> list[tuple]:
    return [entry for entry in found if entry[1] is not ours]


def _continues(museum: Museum, earlier: Museum) -> bool:
    """Whether the museum begins with all exhibits of the other one."""
    begun = museum.exhibits[: len(earlier.exhibits)]
    return (
        museum.base == earlier.base
        and len(begun) == len(earlier.exhibits)
        and all(a.same_as(b) for a, b in zip(begun, earlier.exhibits, strict=True))
    )


def _named(museum: Museum) -> str:
    return ", ".join(museum.words) or "empty"
