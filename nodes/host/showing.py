"""Deltas beside the weights of a ComfyUI model, with stock nodes on both sides.

What is not merged into the weights (`view.py` says what, and why) is added while the UNet runs, by the engine's own
`Reading`. Where the words of gated deltas stand, and the states of layer-wise words, come with the conditioning
(`conditioning.py`): the model's `extra_conds` hands both to the UNet beside the text states. A prompt without the word
takes the base model's own path, bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...clora_core.model.attach import Reading
from ...clora_core.model.attachment import Attachment, Gate
from ...clora_core.model.projections import Projection
from .conditioning import LAYERS, PLACES, put_back
from .model import ModelPatcher

KEY = "clora.showing"


def put_on(
    model: ModelPatcher, paths: Mapping[Projection, str], attachments: Sequence[Attachment], layers: int = 1
) -> None:
    """Let the model, a clone that may be changed, add these deltas.

    paths: projection → its module's path in the UNet. layers: how many cross-attentions there are, if the museum has
    layer-wise words.
    """
    gates = [attachment.gate for attachment in attachments if attachment.gate]
    if gates or layers > 1:
        handing_on = _HandingOn(model.get_model_object("extra_conds"), gates, layers)
        model.add_object_patch("extra_conds", handing_on)
    running = _Showing(paths, attachments, gates)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, running)
    model.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, running.forget)


def take_off(model: ModelPatcher) -> None:
    """Undo `put_on` on a clone that may be changed."""
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    model.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    patched = model.object_patches.get("extra_conds")
    if isinstance(patched, _HandingOn):
        put_back(model, "extra_conds", patched.conds)


class _HandingOn:
    """The model's own method that says what the UNet is given, with the open places of the gates and the layers.

    PLACES is (b, tokens, gates), 1 where open; LAYERS is (b, tokens, layers · width).
    """

    def __init__(self, conds: Any, gates: Sequence[Gate], layers: int) -> None:
        self.conds, self.gates, self.layers = conds, gates, layers

    def __call__(self, **options: Any) -> dict[str, Any]:
        given = self.conds(**options)
        if (states := options.get("cross_attn")) is None:
            return given
        if self.layers > 1:
            given[LAYERS] = CONDCrossAttn(_widened(states, options.get(LAYERS), self.layers))
        if self.gates:
            tokens, places = states.shape[1], options.get(PLACES) or {}
            closed = torch.zeros(1, tokens, dtype=torch.bool)
            masks = [gate.opened(places, tokens) for gate in self.gates]
            opened = torch.stack([closed if mask is None else mask.cpu() for mask in masks], dim=-1)
            given[PLACES] = CONDCrossAttn(opened.to(states).expand(states.shape[0], -1, -1))
        return given


class _Showing:
    """A wrapper around the UNet's forward: while it runs, and no longer, the projections have hooks."""

    def __init__(
        self, paths: Mapping[Projection, str], attachments: Sequence[Attachment], gates: Sequence[Gate]
    ) -> None:
        self.paths, self.attachments, self.gates = paths, attachments, gates

    def __call__(self, unet_forward: Any, *inputs: Any, **options: Any) -> Tensor:
        opened, layers = options.pop(PLACES, None), options.pop(LAYERS, None)
        masks = {} if opened is None else dict(zip(self.gates, opened.unbind(-1), strict=True))
        masks = {gate: mask for gate, mask in masks.items() if mask.any()}
        showing = [each for each in self.attachments if each.gate is None or each.gate in masks]
        unet = unet_forward.class_obj
        paths = self.paths if showing or layers is not None else {}
        modules = {projection: unet.get_submodule(path) for projection, path in paths.items()}
        with Reading(modules, showing, masks, layers):
            return unet_forward(*inputs, **options)

    def forget(self, *ignored: Any) -> None:
        """Give back the memory on the device; ComfyUI calls this when it takes the model off it."""
        for attachment in self.attachments:
            attachment.forget()


def _widened(states: Tensor, known: Tensor | None, count: int) -> Tensor:
    """States (b, tokens, width) for `count` layers: those that are known, and elsewhere the same for each."""
    wide = states.repeat(1, 1, count)
    if known is not None and known.shape[-1] == wide.shape[-1]:
        length = min(known.shape[1], wide.shape[1])
        wide[:, :length] = known[:, :length].to(wide)
    return wide
