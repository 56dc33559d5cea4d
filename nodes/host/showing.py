"""Deltas that are added while a ComfyUI model runs, not merged into its weights (`view.py` says which, and why).

The engine's own `Reading` adds them. The places of gated words and the states of layer-wise words come with the
conditioning (`conditioning.py`); the model's `extra_conds` passes both to the UNet along with the text states. A
prompt without the word gives the base model's output, bit for bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...clora_core.model.attach import Reading
from ...clora_core.model.attachment import Attachment, Gate
from ...clora_core.model.projections import Place, Projection, Slot
from .apart import listening
from .conditioning import CLAUSES, LAYERS, MARKED, PLACES, restore_method
from .model import ModelPatcher, family_of
from .progress import warn
from .remembered import recalled

KEY = "clora.showing"
CHANGED = (
    "Another node, such as Conditioning (Average), computed a new conditioning. Word-gated exhibits act at the words "
    "of conditioning_to only: put a word there."
)
LOST = (
    "A layer-wise word of a combined prompt is no longer in memory, so its first vector acts in all layers. Encode "
    "that prompt again, or start ComfyUI without --cache-none."
)


def put_on(
    model: ModelPatcher,
    places: Mapping[Projection, Place],
    attachments: Sequence[Attachment],
    layers: int = 1,
    *,
    apart: bool = False,
) -> None:
    """Patch a clone of a model so that it adds these deltas.

    places: where each projection is in the diffusion model. layers: the number of cross-attentions if the museum has
    layer-wise words, else 1. apart: whether each clause of a prompt is heard in its own strip (`apart.py`).
    """
    gates = [attachment.gate for attachment in attachments if attachment.gate]
    if gates or layers > 1 or apart:
        conds = _ExtraConds(model.get_model_object("extra_conds"), gates, layers, apart)
        model.add_object_patch("extra_conds", conds)
    wrapper = _DeltaWrapper(places, attachments, gates)
    # of the diffusion model itself, which not every transformer lets us wrap
    level = WrappersMP.DIFFUSION_MODEL if family_of(model).reads == "states" else WrappersMP.APPLY_MODEL
    model.add_wrapper_with_key(level, KEY, wrapper)
    model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, wrapper.forget)


def take_off(model: ModelPatcher) -> None:
    """Undo `put_on` on a clone."""
    for level in (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL):
        model.remove_wrappers_with_key(level, KEY)
    model.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    patch = model.object_patches.get("extra_conds")
    if isinstance(patch, _ExtraConds):
        restore_method(model, "extra_conds", patch.conds)


class _ExtraConds:
    """The model's own `extra_conds`, with more inputs for the UNet.

    PLACES (b, tokens, gates) is 1 where a gate is open; LAYERS is (b, tokens, layers · width); CLAUSES is
    (b, tokens, 1).
    """

    def __init__(self, conds: Any, gates: Sequence[Gate], layers: int, apart: bool) -> None:
        self.conds, self.gates, self.layers, self.apart = conds, gates, layers, apart

    def __call__(self, **options: Any) -> dict[str, Any]:
        conds = self.conds(**options)
        if (states := options.get("cross_attn")) is None:
            return conds
        if self.layers > 1:
            conds[LAYERS] = CONDCrossAttn(_widened(states, options.get(LAYERS), self.layers))
        if self.gates:
            places = _places(states, options.get(PLACES), options.get(MARKED))
            tokens = max(states.shape[1], *(mask.shape[1] for mask in places.values()), 0)
            closed = torch.zeros(1, tokens, dtype=torch.bool)
            masks = [gate.opened(places, tokens) for gate in self.gates]
            opened = torch.stack([closed if mask is None else mask.cpu() for mask in masks], dim=-1)
            conds[PLACES] = CONDCrossAttn(opened.to(states).expand(states.shape[0], -1, -1))
        if self.apart:
            tokens = states.shape[1]
            numbers = options.get(CLAUSES, torch.zeros(1, 0))[:, :tokens]  # other nodes may have added tokens
            numbers = F.pad(numbers, (0, tokens - numbers.shape[1]))[..., None]
            conds[CLAUSES] = CONDCrossAttn(numbers.to(states).expand(states.shape[0], -1, -1))
        return conds


class _DeltaWrapper:
    """A wrapper around the network's forward: the projections only have hooks while it runs."""

    def __init__(
        self, places: Mapping[Projection, Place], attachments: Sequence[Attachment], gates: Sequence[Gate]
    ) -> None:
        self.places, self.attachments, self.gates = places, attachments, gates

    def __call__(self, forward: Any, *inputs: Any, **options: Any) -> Tensor:
        opened, layers, clauses = (options.pop(key, None) for key in (PLACES, LAYERS, CLAUSES))
        masks = {} if opened is None else dict(zip(self.gates, opened.unbind(-1), strict=True))
        masks = {gate: mask for gate, mask in masks.items() if mask.any()}
        active = [attachment for attachment in self.attachments if attachment.gate is None or attachment.gate in masks]
        network = getattr(forward.class_obj, "diffusion_model", forward.class_obj)
        slots = {
            projection: Slot(network.get_submodule(place.module), place.first_row, projection.shape[0])
            for projection, place in (self.places if active or layers is not None else {}).items()
        }
        with ExitStack() as entered:
            entered.enter_context(Reading(slots, active, masks, layers))
            if clauses is not None:
                paths = {place.module.rpartition(".")[0] for place in self.places.values()}
                attentions = [network.get_submodule(path) for path in paths]
                entered.enter_context(listening(attentions, clauses[..., 0], inputs[0]))
            return forward(*inputs, **options)

    def forget(self, *ignored: Any) -> None:
        """Free the memory on the device. ComfyUI calls this when it unloads the model."""
        for attachment in self.attachments:
            attachment.forget()


def _widened(states: Tensor, layers: Tensor | None, count: int) -> Tensor:
    """States for `count` layers: those from `layers`, and otherwise `states` (b, tokens, width) for every layer."""
    wide = states.repeat(1, 1, count)
    if layers is not None and layers.shape[-1] == wide.shape[-1]:
        length = min(layers.shape[1], wide.shape[1])
        wide[:, :length] = layers[:, :length].to(wide)
    for part, chunk in recalled(states):
        if chunk and chunk.layers is not None and chunk.layers.shape[-1] == wide.shape[-1]:
            wide[0, part] = chunk.layers.to(wide)
        elif chunk and chunk.all_layers and chunk.places and (layers is None or part.start >= layers.shape[1]):
            warn(LOST)
    return wide


def _places(states: Tensor, known: Mapping[str, Tensor] | None, marked: int | None) -> dict[str, Tensor]:
    """word → its places in states (b, tokens, width): the known ones, and those that other nodes lost.

    marked: in so many tokens, `known` are all places. Frozen words are only looked for behind these, since the states
    of another prompt without them can be the same. Reports a conditioning of ours that was changed so that they cannot
    be found.
    """
    result = dict(known or {})
    for part, chunk in recalled(states):
        for word, mask in chunk.places.items() if chunk else ():
            if word in chunk.frozen and (marked is None or part.start < marked):
                continue
            whole = torch.zeros(1, states.shape[1], dtype=torch.bool)
            if word in result:
                whole[:, : result[word].shape[1]] = result[word][:, : states.shape[1]]
            whole[0, part] |= mask
            result[word] = whole
        if chunk is None and known is not None and states[0, part].any():
            warn(CHANGED)
    return result
