"""Clones of a model and its CLIP that show a museum.

    W·x + Σ_i strength_i · up_i·(down_i·x)          on every projection, in one of two ways

If the weights are float32 or float16 at run time, all exhibits become one low-rank patch per weight, which ComfyUI
merges when it loads the model; sampling is as fast as before. In coarser dtypes (bfloat16, float8, quantized), rounding
the sum would lose small deltas, so they are added to the outputs while the UNet runs (`showing.py`). The same goes for
word-gated exhibits, which are never merged.

A clone holds the museum's own tensors. Sums are computed when ComfyUI loads the model or runs it, and freed when it
unloads the model, so that a chain of nodes does not hold the earlier exhibits once per node.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...clora_core.errors import BaseModelError, MuseumError
from ...clora_core.model.attachment import Attachment
from ...clora_core.model.families import FAMILIES
from ...clora_core.model.families.unet import UNet
from ...clora_core.model.layers import check_layers, layer_count
from ...clora_core.model.low_rank import Matrix, Weighted, compact, weighted_sum
from ...clora_core.model.projections import Place, Projection
from ...clora_core.museum.museum import Museum
from .model import (
    PREFIX,
    ModelPatcher,
    family_of,
    fingerprint_of,
    own_weight,
    places_of,
    run_dtype,
    stored_dtype,
    unet_of,
)
from .showing import put_on, take_off
from .words import CLIP, with_words, without_words

KEY = "clora.museum"
EVENTS = (CallbacksMP.ON_LOAD, CallbacksMP.ON_DETACH)  # after which the sums are not needed, or can be made again
MERGED = (torch.float32, torch.float16)
EXACT = (torch.float32, torch.float16, torch.bfloat16)  # the dtypes in which base models are published


def view(
    model: ModelPatcher,
    clip: CLIP,
    museum: Museum,
    strengths: Mapping[str, float] | None = None,
    *,
    keep_apart: bool = False,
) -> tuple[ModelPatcher, CLIP]:
    """Clones that show the museum and know its words. strengths: word → strength, by default 1.

    keep_apart: whether several words of one prompt are kept apart (`apart.py`); not those of styles. If the model
    already shows this museum or an earlier state of it, the result shows it once. Raises BaseModelError for a model
    that shows another museum, is of another family than the museum's base, or cannot keep words apart.
    """
    strengths = {museum.exhibit(word).word: float(strength) for word, strength in (strengths or {}).items()}
    current = _view_of(model)
    apart = [exhibit.word for exhibit in museum.exhibits if exhibit.kind == "object"] if keep_apart else []
    if current is not None and (current.strengths, current.keep_apart) == (strengths, keep_apart):
        if same_museum(current.museum, museum):
            return model, with_words(clip, museum.tokens, apart=apart)
    family = family_of(model)
    if keep_apart and not isinstance(family.structure, UNet):
        able = ", ".join(family.title for family in FAMILIES if isinstance(family.structure, UNet))
        raise BaseModelError(
            f"keep_apart does not work with {family.title}, only with {able}. Turn it off, and give each word its own "
            "area with Conditioning (Set Area)."
        )
    model, clip = base_beneath(model, clip, museum)
    places = places_of(model)
    museum.shown_over(fingerprint_of(model))  # raises for another family
    summands = _checked(museum.summands(strengths), places)
    model = model.clone()
    merged = {key: parts for key, parts in summands.items() if _run_dtype(model, places[key].module) in MERGED}
    patches = {
        _patch_key(model, projection, places[projection]): _SummedLoRA(parts) for projection, parts in merged.items()
    }
    if missing := set(patches) - set(model.add_patches(patches)):
        raise BaseModelError(f"ComfyUI rejected the patch of {min(missing, key=str)}; the museum would be incomplete.")
    unmerged = {projection: parts for projection, parts in summands.items() if projection not in merged}
    attachments = [Attachment(_Sums(unmerged))] if unmerged else []
    for exhibit in museum.gated:
        own = {projection: [part] for projection, part in exhibit.weighted(strengths).items()}
        attachments.append(Attachment(_Sums(_checked(own, places)), exhibit.gate))
    layers = _layers(museum, places)
    if attachments or layers > 1 or keep_apart:
        put_on(model, places, attachments, layers, apart=keep_apart)
    shown = _View(museum, strengths, keep_apart, tuple(patches.values()))
    model.set_attachments(KEY, shown)
    for event in EVENTS:
        model.add_callback_with_key(event, KEY, shown.forget)
    return model, with_words(clip, museum.tokens, apart=apart)


def viewed(model: ModelPatcher) -> Museum | None:
    """The museum that a model shows, also if it is a clone with other patches."""
    current = _view_of(model)
    return None if current is None else current.museum


def base_beneath(model: ModelPatcher, clip: CLIP, museum: Museum | None = None) -> tuple[ModelPatcher, CLIP]:
    """The model and the CLIP without the museum that the model shows, but with other nodes' patches.

    museum: the CLIP does not know its words either, even if only the CLIP comes from a node that showed it. Raises
    BaseModelError if the model shows a museum other than this one or an earlier state of it.
    """
    current = _view_of(model)
    if current is None:
        return model, without_words(clip, museum.words) if museum else clip
    if museum is not None and not museum.begins_with(current.museum):
        raise BaseModelError(
            f"This model already shows a museum ({_word_list(current.museum)}) other than the connected one "
            f"({_word_list(museum)}). Connect the base model, or the model that came with this museum."
        )
    base = model.clone()
    others = {
        key: [entry for entry in entries if not any(entry[1] is patch for patch in current.patches)]
        for key, entries in model.patches.items()
    }
    base.patches = {key: entries for key, entries in others.items() if entries}
    base.add_patches({})  # makes ComfyUI notice that the patches changed
    take_off(base)
    for event in EVENTS:
        base.remove_callbacks_with_key(event, KEY)
    base.remove_attachments(KEY)
    return base, without_words(clip, current.museum.words)


def same_museum(a: Museum, b: Museum) -> bool:
    """Whether two museums contain the same words and weights over the same base, in the same order."""
    return len(a.exhibits) == len(b.exhibits) and a.begins_with(b)


class _SummedLoRA(LoRAAdapter):
    """The sum of low-rank matrices as one patch of ComfyUI, which computes it when it reads `weights`."""

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.loaded_keys: set[str] = set()
        self.parts = parts

    @cached_property
    def weights(self) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.inference_mode(False), torch.no_grad():  # so that training nodes can use it, too
            delta = weighted_sum(self.parts)
        return delta.up, delta.down, None, None, None, None


class _Sums(Mapping[Projection, Matrix]):
    """projection → the sum of its low-rank matrices, computed anew every time: `Attachment` keeps what it reads."""

    def __init__(self, parts: Mapping[Projection, Sequence[Weighted]]) -> None:
        self.parts = parts

    def __getitem__(self, projection: Projection) -> Matrix:
        with torch.inference_mode(False), torch.no_grad():
            return compact(weighted_sum(self.parts[projection]))

    def __contains__(self, projection: object) -> bool:
        return projection in self.parts

    def __iter__(self) -> Iterator[Projection]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, eq=False)
class _View:
    """What `view` applied to a model. patches: those that ComfyUI merges."""

    museum: Museum
    strengths: Mapping[str, float]
    keep_apart: bool
    patches: Sequence[_SummedLoRA]

    def forget(self, *ignored: Any) -> None:
        """Free the sums. ComfyUI calls this after it has merged the patches, and when it unloads the model."""
        for patch in self.patches:
            vars(patch).pop("weights", None)


def _view_of(model: ModelPatcher) -> _View | None:
    return model.attachments.get(KEY)


def note_about(model: ModelPatcher, museum: Museum) -> str:
    """What to say if the museum was trained on a checkpoint other than this one; "" if that is unknown."""
    exact = all(stored_dtype(own_weight(model, place.module)) in EXACT for place in places_of(model).values())
    return museum.shown_over(fingerprint_of(model)) if exact else ""


def _patch_key(model: ModelPatcher, projection: Projection, place: Place) -> Any:
    """ComfyUI's key of a weight, or of the projection's rows in it."""
    key = f"{PREFIX}{place.module}.weight"
    whole = len(own_weight(model, place.module)) == projection.shape[0]
    return key if whole else (key, (0, place.first_row, projection.shape[0]))


def _run_dtype(model: ModelPatcher, path: str) -> torch.dtype | None:
    return run_dtype(unet_of(model).get_submodule(path), "weight", own_weight(model, path))


def _layers(museum: Museum, places: Mapping[Projection, Place]) -> int:
    """The number of cross-attentions if any word of the museum is layer-wise; else 1."""
    count = layer_count(places)
    for token in museum.tokens:
        check_layers(token, count)
    deep = any(token.layers > 1 for token in museum.tokens)
    return count if deep else 1


def _checked(
    summands: Mapping[Projection, Sequence[Weighted]], places: Mapping[Projection, Place]
) -> Mapping[Projection, Sequence[Weighted]]:
    """The summands. Raises an error if the model has no projection of the same shape for one of them."""
    for projection, parts in summands.items():
        if projection not in places:
            raise BaseModelError(
                f"The museum changes the projection '{projection.path}' of shape {projection.shape}, which the loaded "
                "model does not have. Load the museum's own base."
            )
        for delta, _ in parts:
            if delta.shape != projection.shape:
                raise MuseumError(
                    f"The museum's delta of '{projection.path}' has shape {delta.shape}, not {projection.shape}. "
                    "The museum is damaged; load it again from its file."
                )
    return summands


def _word_list(museum: Museum) -> str:
    return ", ".join(museum.words) or "empty"
