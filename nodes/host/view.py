"""Let a model and its CLIP show a museum: clones, and what comes in stays as it was.

    W·x + Σ_i strength_i · up_i·(down_i·x)          on every projection, in one of two ways

Where the weights are float32 or float16 when the model runs, all exhibits are one low-rank patch per weight, which
ComfyUI merges when it loads the model; a sampling step then costs what it always did. Where they are coarser (bfloat16,
float8, quantized) rounding the sum would eat small deltas, so they stay beside the weights and are added to their
outputs while the UNet runs (`showing.py`). So are exhibits applied at their word only, which are never merged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...clora_core.errors import BaseModelError, MuseumError
from ...clora_core.model.attachment import Attachment
from ...clora_core.model.layers import check_layers, layer_count
from ...clora_core.model.low_rank import LowRank
from ...clora_core.model.projections import Projection
from ...clora_core.museum.museum import Exhibit, Museum
from .model import PREFIX, ModelPatcher, fingerprint_of, own_weight, projection_paths, run_dtype, stored_dtype, unet_of
from .showing import put_on, take_off
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
    paths = projection_paths(model)
    deltas = _deltas(model, museum, strengths, paths)
    model = model.clone()
    merged = {place: delta for place, delta in deltas.items() if _run_dtype(model, paths[place]) in MERGED}
    patches = {
        f"{PREFIX}{paths[place]}.weight": LoRAAdapter(set(), (delta.up, delta.down, None, None, None, None))
        for place, delta in merged.items()
    }
    if lost := set(patches) - set(model.add_patches(patches)):
        raise BaseModelError(f"ComfyUI did not take the patch of '{min(lost)}', so the museum would not be whole.")
    rest = {projection: delta for projection, delta in deltas.items() if projection not in merged}
    beside = [Attachment(_cheap(rest))] if rest else []
    beside += [_gated(exhibit, strengths.get(exhibit.word, 1.0), paths) for exhibit in museum.gated]
    layers = _layers(museum, paths)
    if beside or layers > 1:
        put_on(model, paths, beside, layers)
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
    take_off(base)
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


def _view_of(model: ModelPatcher) -> _View | None:
    return model.attachments.get(KEY)


def _deltas(
    model: ModelPatcher, museum: Museum, strengths: Mapping[str, float], paths: Mapping[Projection, str]
) -> dict[Projection, LowRank]:
    """The stacked deltas. Raises BaseModelError where museum and model do not belong together."""
    base = fingerprint_of(model)
    exact = all(stored_dtype(own_weight(model, path)) in EXACT for path in paths.values())
    if exact or museum.base.family != base.family:
        museum.check_over(base)
    return _checked(museum.deltas(strengths), paths)


def _run_dtype(model: ModelPatcher, path: str) -> torch.dtype | None:
    return run_dtype(unet_of(model).get_submodule(path), "weight", own_weight(model, path))


def _gated(exhibit: Exhibit, strength: float, paths: Mapping[Projection, str]) -> Attachment:
    strength = exhibit.strength * strength
    deltas = {projection: delta.scaled(strength) for projection, delta in exhibit.deltas.items()}
    return Attachment(_cheap(_checked(deltas, paths)), exhibit.gate)


def _cheap(deltas: Mapping[Projection, LowRank]) -> dict[Projection, LowRank | Tensor]:
    """Each as its factors, or as one matrix where that takes less to multiply by."""
    dense = {place: delta.rank * sum(delta.shape) >= math.prod(delta.shape) for place, delta in deltas.items()}
    return {
        place: LowRank(delta.up.float(), delta.down.float()).dense() if dense[place] else delta
        for place, delta in deltas.items()
    }


def _layers(museum: Museum, paths: Mapping[Projection, str]) -> int:
    """How many cross-attentions the model has, if any word of the museum is layer-wise; else 1."""
    count = layer_count(paths)
    for token in museum.tokens:
        check_layers(token, count)
    deep = any(len(vectors) > 1 for token in museum.tokens for vectors in token.vectors.values())
    return count if deep else 1


def _checked(deltas: Mapping[Projection, LowRank], paths: Mapping[Projection, str]) -> dict[Projection, LowRank]:
    """The deltas, once it is known that the model has a projection of its shape for each."""
    for projection, delta in deltas.items():
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
    return dict(deltas)


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
