"""What a conditioning knows of learned words: where they stand, and the states of those with a vector per layer.

ComfyUI hands a prompt to CLIP as rows of ids, in which a vector may stand for a token. Ours know their word. So CLIP
can say where the words stand, and encode a prompt that holds a layer-wise word once for each cross-attention. Both
travel in the conditioning's dictionary, through stock nodes, to the model (`showing.py`). The first layer's states are
the ordinary conditioning, so that whatever else reads it (ControlNets, other nodes) finds what it expects.
"""

from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ...clora_core.model.concept import ConceptToken

PLACES = "clora_places"  # in a conditioning: word → (1, tokens) bool
LAYERS = "clora_layers"  # in a conditioning: (1, tokens, layers · width)
Piece = int | dict[str, Any]  # an id, or what stands for a learned word
Pairs = Mapping[str, Sequence[Sequence[tuple[Any, ...]]]]  # encoder → rows of (piece, weight)


def spelled(token: ConceptToken, encoder: str) -> list[Piece]:
    """What stands for a word in that text encoder's rows: a vector each, as ComfyUI takes it, which knows its word."""
    layers = token.vectors[encoder]  # (layers, words, width)
    return [
        {"type": "embedding", "data": vectors[0], "clora_word": token.word, "clora_layers": vectors}
        for vectors in layers.unbind(1)
    ]


def word_at(piece: Any) -> str | None:
    """The learned word that stands there, if one does."""
    return piece.get("clora_word") if isinstance(piece, dict) else None


def places(rows: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
    """word → where it stands in rows of pieces, all of one length, (rows, length) bool."""
    spots: dict[str, list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        for position, piece in enumerate(row):
            if word := word_at(piece):
                spots.setdefault(word, []).append((number, position))
    masks = {word: torch.zeros(len(rows), len(rows[0]), dtype=torch.bool) for word in sorted(spots)}
    for word, mask in masks.items():
        mask[tuple(zip(*spots[word], strict=True))] = True
    return masks


def layer_of(piece: Any, layer: int) -> Any:
    """What stands there for that layer: a layer-wise word's own vector, and everything else unchanged."""
    if word_at(piece) is None or len(piece["clora_layers"]) == 1:
        return piece
    return {**piece, "data": piece["clora_layers"][layer]}


def layer_count(pieces: Sequence[Any]) -> int:
    """How many layers the words among these pieces have; 1 if none is layer-wise."""
    return max((len(piece["clora_layers"]) for piece in pieces if word_at(piece)), default=1)


def saying_more(clip: Any) -> Any:
    """The CLIP, a clone that may be changed, whose conditionings say where learned words stand, and their layers."""
    before = clip.patcher.get_model_object("encode_token_weights")
    if not isinstance(before, _SayingMore):
        clip.patcher.add_object_patch("encode_token_weights", _SayingMore(before))
    return clip


def saying_no_more(clip: Any) -> Any:
    """Undo `saying_more` on a clone that may be changed."""
    patched = clip.patcher.object_patches.get("encode_token_weights")
    if isinstance(patched, _SayingMore):
        put_back(clip.patcher, "encode_token_weights", patched.encode)
    return clip


def put_back(patcher: Any, name: str, method: Any) -> None:
    """Let a model's method be again what it was: its own, or what others put in its place."""
    if method == MethodType(getattr(type(patcher.model), name), patcher.model):
        del patcher.object_patches[name]
    else:
        patcher.object_patches[name] = method


class _SayingMore:
    """The text encoder's own method, with places and layers among what it returns besides states and pooled vectors."""

    def __init__(self, encode: Any) -> None:
        self.encode = encode

    def __call__(self, pairs: Pairs) -> tuple[Any, ...]:
        states, pooled, *more = self.encode(pairs)
        rows = next(iter(pairs.values()), ())  # all encoders of a model read the same words at the same places
        found = places([[pair[0] for pair in row] for row in rows])
        side_by_side = {word: mask.flatten()[None] for word, mask in found.items()}  # as their states are joined
        known = {**(more[0] if more else {}), PLACES: side_by_side}
        if (layers := self._all_layers(pairs, states)) is not None:
            known[LAYERS] = layers
        return states, pooled, known

    def _all_layers(self, pairs: Pairs, first: Tensor) -> Tensor | None:
        """The states of all layers side by side, (1, tokens, layers · width); None if no word is layer-wise.

        first: the first layer's, which are known already.
        """
        count = layer_count([pair[0] for rows in pairs.values() for row in rows for pair in row])
        if count == 1:
            return None

        def at(layer: int) -> dict[str, list[list[tuple[Any, ...]]]]:
            return {
                name: [[(layer_of(piece, layer), *weight) for piece, *weight in row] for row in rows]
                for name, rows in pairs.items()
            }

        return torch.cat([first, *(self.encode(at(layer))[0] for layer in range(1, count))], dim=-1)
