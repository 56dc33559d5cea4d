"""Layer-wise words inside ComfyUI: a prompt's states for every cross-attention, from CLIP to the UNet.

A prompt that holds such a word is encoded once for each cross-attention. The first layer's states are its ordinary
conditioning, so that whatever else reads it (ControlNets, other nodes) finds what it expects; all layers' travel beside
it under `LAYERS`, and while the UNet runs, each key and value projection reads its own.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = "clora_layers"  # (1, tokens, layers · width) in a conditioning, (b, tokens, layers · width) to the UNet
Pairs = Mapping[str, Sequence[Sequence[tuple[Any, ...]]]]  # encoder → rows of (id or vector, weight)


def with_layers(vector: Tensor, layers: Tensor) -> Tensor:
    """A word's vector (width,) that knows those of all layers, (layers, width), where it stands in a row of ids."""
    vector.clora_layers = layers  # type: ignore[attr-defined]
    return vector


def layer_of(piece: Any, layer: int) -> Any:
    """What stands there for that layer: of a layer-wise word its own vector, of all else the same as ever."""
    known = getattr(piece, "clora_layers", None)
    return piece if known is None else known[layer]


def layer_count(pieces: Sequence[Any]) -> int:
    """How many layers the words among these ids and vectors have; 1 if none is layer-wise."""
    known = (getattr(piece, "clora_layers", None) for piece in pieces)
    return max((len(layers) for layers in known if layers is not None), default=1)


def all_layers(encode: Any, pairs: Pairs, first: Tensor) -> Tensor | None:
    """The states of all layers side by side, (1, tokens, layers · width); None if no word is layer-wise.

    encode: what gives the states of such rows. first: the first layer's, which are known already.
    """
    count = layer_count([pair[0] for rows in pairs.values() for row in rows for pair in row])
    if count == 1:
        return None

    def at(layer: int) -> dict[str, list[list[tuple[Any, ...]]]]:
        return {
            name: [[(layer_of(piece, layer), *weight) for piece, *weight in row] for row in rows]
            for name, rows in pairs.items()
        }

    return torch.cat([first, *(encode(at(layer))[0] for layer in range(1, count))], dim=-1)


def widened(states: Tensor, known: Tensor | None, count: int) -> Tensor:
    """States (b, tokens, width) for `count` layers: those that are known, and elsewhere the same for each."""
    wide = states.repeat(1, 1, count)
    if known is not None and known.shape[-1] == wide.shape[-1]:
        length = min(known.shape[1], wide.shape[1])
        wide[:, :length] = known[:, :length].to(wide)
    return wide


def reading(handles: ExitStack, unet: nn.Module, layers: Mapping[str, int], wide: Tensor | None) -> None:
    """Until the stack is closed, the projections at these paths read their layer of the states."""
    if wide is None or not layers:
        return
    width = wide.shape[-1] // (max(layers.values()) + 1)
    for path, layer in layers.items():
        own = wide[..., layer * width : (layer + 1) * width]
        handles.callback(unet.get_submodule(path).register_forward_pre_hook(_instead(own)).remove)


def _instead(states: Tensor):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (states.to(inputs[0]), *inputs[1:])

    return hook
