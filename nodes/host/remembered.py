"""What is known about encoded prompts, looked up by their states.

Stock nodes combine conditionings, and some keep only the dictionary of one of them: Conditioning (Concat) loses the
places of the words in the other prompt. So they are remembered by the content of the states, chunk by chunk. A node
that computes new states, such as Conditioning (Average), leaves nothing to be found.
"""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNKS_MOST = 4096


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk of an encoded prompt.

    tokens: its place in the prompt. places: word → where it is, (length,) bool. frozen: those of these words that have
    the states of the known words they stand for, so that another prompt may have the same chunk. all_layers: gives the
    prompt's states of all layers, (1, tokens, layers · width), as long as another node keeps them; None without a
    layer-wise word.
    """

    tokens: slice
    places: Mapping[str, Tensor]
    frozen: frozenset[str]
    all_layers: "weakref.ref[Tensor] | None"

    @property
    def layers(self) -> Tensor | None:
        """Its states of all layers, (length, layers · width)."""
        whole = self.all_layers() if self.all_layers else None
        return None if whole is None else whole[0, self.tokens]


_chunks: OrderedDict[tuple[tuple[int, ...], bytes], Chunk] = OrderedDict()  # shape and hash of the states → chunk


def remember(
    states: Tensor, length: int, places: Mapping[str, Tensor], frozen: frozenset[str], layers: Tensor | None
) -> None:
    """Remember an encoded prompt, (1, tokens, width), in chunks of `length` tokens.

    places: word → (1, tokens) bool. frozen: see `Chunk`. layers: (1, tokens, layers · width), if a word is layer-wise.
    """
    kept = None if layers is None else weakref.ref(layers)
    for part in _parts(states, length):
        own = {word: mask[0, part] for word, mask in places.items() if mask[0, part].any()}
        _chunks[_key(states, part)] = Chunk(part, own, frozen & own.keys(), kept)
    while len(_chunks) > CHUNKS_MOST:
        _chunks.popitem(last=False)


def recalled(states: Tensor) -> list[tuple[slice, Chunk | None]]:
    """The chunks of states (1, tokens, width), with what is remembered of each; None for unknown states.

    Empty if no prompt in chunks that fit was encoded before.
    """
    lengths = {shape[0] for shape, _ in _chunks if shape[1] == states.shape[2]}
    for length in sorted(lengths, reverse=True):
        if states.shape[0] == 1 and states.shape[1] % length == 0:
            return [(part, _chunks.get(_key(states, part))) for part in _parts(states, length)]
    return []


def _parts(states: Tensor, length: int) -> list[slice]:
    return [slice(start, start + length) for start in range(0, states.shape[1], length)]


def _key(states: Tensor, part: slice) -> tuple[tuple[int, ...], bytes]:
    values = states[0, part].detach().to("cpu", torch.float32).contiguous()
    return tuple(values.shape), hashlib.sha256(values.numpy().tobytes()).digest()
