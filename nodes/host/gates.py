"""Deltas that act at their own word's places only, inside ComfyUI, with stock nodes on both sides.

CLIP says where learned words stand in a prompt; that travels in the conditioning's dictionary under `PLACES`. The
model hands it to the UNet beside the text states, and while the UNet runs, each projection adds a gated delta at the
places of its word. Nothing is merged into weights, and a prompt without the word takes the base model's own path, bit
for bit. The states of layer-wise words (`layers.py`) travel the same way.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ...clora_core.model.attach import Gate
from .adding import Adding
from .layers import LAYERS, Pairs, all_layers, reading, widened
from .model import ModelPatcher

PLACES = "clora_places"  # in a conditioning: word → (1, tokens) bool; to the UNet: (b, tokens, gates), 1 where open
KEY = "clora.gates"


def marked(vector: Tensor, word: str) -> Tensor:
    """A word's vector that will still know its word where it stands in a row of ids."""
    vector.clora_word = word  # type: ignore[attr-defined]
    return vector


def places(rows: Sequence[Sequence[int | Tensor]]) -> dict[str, Tensor]:
    """word → where it stands in rows of ids and vectors, all of one length, (rows, length) bool."""
    spots: dict[str, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        for position, piece in enumerate(row):
            if word := getattr(piece, "clora_word", None):
                spots.setdefault(word, []).append((number, position))
    masks = {word: torch.zeros(len(rows), len(rows[0]), dtype=torch.bool) for word in sorted(spots)}
    for word, mask in masks.items():
        mask[tuple(zip(*spots[word], strict=True))] = True
    return masks


def telling_places(clip: Any) -> Any:
    """The CLIP, a clone that may be changed, now also saying where learned words stand, and their layers' states."""
    before = clip.patcher.get_model_object("encode_token_weights")
    if not isinstance(before, _Telling):
        clip.patcher.add_object_patch("encode_token_weights", _Telling(before))
    return clip


def telling_nothing(clip: Any) -> Any:
    """Undo `telling_places` on a clone that may be changed."""
    telling = clip.patcher.object_patches.get("encode_token_weights")
    if isinstance(telling, _Telling):
        _put_back(clip.patcher, "encode_token_weights", telling.encode)
    return clip


class _Telling:
    """The text encoder's own method, with places and layers among what it returns besides states and pooled vectors."""

    def __init__(self, encode: Any) -> None:
        self.encode = encode

    def __call__(self, pairs: Pairs) -> tuple[Any, ...]:
        states, pooled, *more = self.encode(pairs)
        rows = next(iter(pairs.values()), ())  # all encoders of a model read the same words at the same places
        found = places([[pair[0] for pair in row] for row in rows])
        side_by_side = {word: mask.flatten()[None] for word, mask in found.items()}  # as their states are joined
        told = {**(more[0] if more else {}), PLACES: side_by_side}
        if (wide := all_layers(self.encode, pairs, states)) is not None:
            told[LAYERS] = wide
        return states, pooled, told


@dataclass(frozen=True, eq=False)
class Gated:
    """One exhibit's deltas by path in the UNet, and where they act."""

    gate: Gate
    deltas: Mapping[str, Adding]


def put_gates(model: ModelPatcher, exhibits: Sequence[Gated], layers: Mapping[str, int] | None = None) -> None:
    """Let the model, a clone that may be changed, add these deltas at their words' places.

    layers: path of each projection in the UNet → its cross-attention's number, if there are layer-wise words.
    """
    layers = layers or {}
    count = max(layers.values(), default=0) + 1
    hearing = _Hearing(model.get_model_object("extra_conds"), [exhibit.gate for exhibit in exhibits], count)
    model.add_object_patch("extra_conds", hearing)
    running = _Gates(exhibits, layers)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, running)
    model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, running.forget)


def take_gates(model: ModelPatcher) -> None:
    """Undo `put_gates` on a clone that may be changed."""
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    model.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    hearing = model.object_patches.get("extra_conds")
    if isinstance(hearing, _Hearing):
        _put_back(model, "extra_conds", hearing.conds)


def _put_back(patcher: ModelPatcher, name: str, method: Any) -> None:
    """Let a method be again what it was: the model's own, or what others put in its place."""
    if method == MethodType(getattr(type(patcher.model), name), patcher.model):
        del patcher.object_patches[name]
    else:
        patcher.object_patches[name] = method


class _Hearing:
    """The model's own method that says what the UNet is given, with the gates' places and the layers besides."""

    def __init__(self, conds: Any, gates: Sequence[Gate], layers: int) -> None:
        self.conds, self.gates, self.layers = conds, gates, layers

    def __call__(self, **options: Any) -> dict[str, Any]:
        given = self.conds(**options)
        if (states := options.get("cross_attn")) is None:
            return given
        if self.layers > 1:
            given[LAYERS] = CONDCrossAttn(widened(states, options.get(LAYERS), self.layers))
        if self.gates:
            opened = torch.stack([_opened(options.get(PLACES) or {}, g, states.shape[1]) for g in self.gates], dim=-1)
            given[PLACES] = CONDCrossAttn(opened.to(states).expand(states.shape[0], -1, -1))
        return given


def _opened(known: Mapping[str, Tensor], gate: Gate, tokens: int) -> Tensor:
    """(1, tokens) bool. Conditionings that were joined are longer than what is known: closed there."""
    found = known.get(gate.word, torch.zeros(1, 0, dtype=torch.bool))[:, :tokens].cpu()
    found = torch.nn.functional.pad(found, (0, tokens - found.shape[1]))
    return found.cumsum(1) > 0 if gate.onwards else found


class _Gates:
    """A wrapper around the UNet's forward: while it runs, and no longer, gated projections have hooks."""

    def __init__(self, exhibits: Sequence[Gated], layers: Mapping[str, int]) -> None:
        self.exhibits, self.layers = exhibits, layers

    def __call__(self, unet_forward: Any, *inputs: Any, **options: Any) -> Tensor:
        opened, wide = options.pop(PLACES, None), options.pop(LAYERS, None)
        with ExitStack() as handles:
            reading(handles, unet_forward.class_obj, self.layers, wide)
            for number, exhibit in enumerate(self.exhibits if opened is not None else ()):
                mask = opened[..., number, None]
                if not mask.any():
                    continue
                for path, adding in exhibit.deltas.items():
                    module: nn.Module = unet_forward.class_obj.get_submodule(path)
                    handles.callback(module.register_forward_hook(_through(mask, adding)).remove)
            return unet_forward(*inputs, **options)

    def forget(self, *ignored: Any) -> None:
        """Give back the memory on the device; ComfyUI calls this when it takes the model off it."""
        for exhibit in self.exhibits:
            for adding in exhibit.deltas.values():
                adding.forget()


def _through(mask: Tensor, adding: Adding):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return adding(module, (inputs[0] * mask.to(inputs[0]),), output)

    return hook
