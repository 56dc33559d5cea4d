"""Learned words in a conditioning: their places in the prompt, and the states of words with a vector per layer.

ComfyUI passes a prompt to CLIP as rows of ids, where a vector can replace an id. Our vectors carry their word. So CLIP
can report the places of the words, and encode a prompt with a layer-wise word once per cross-attention. Both travel in
the conditioning's dictionary, through stock nodes, to the model (`showing.py`). The first layer's states are the
ordinary conditioning, so other readers (ControlNets, other nodes) work as usual.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import comfy.sd1_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...clora_core.model.concept import ConceptToken, skip_note
from .progress import warn
from .remembered import remember

PLACES = "clora_places"  # in a conditioning: word → (1, tokens) bool
MARKED = "clora_tokens"  # the number of its tokens, for which these are all places
LAYERS = "clora_layers"  # in a conditioning: (1, tokens, layers · width)
CLAUSES = "clora_clauses"  # in a conditioning: which clause a token belongs to, (1, tokens); 0 is read everywhere
CLIPS = ("l", "g", "h")  # what tokenizers call CLIP text encoders
SECOND = "conditioning_mt5xl"  # in a conditioning: states that the network reads behind the others (HunyuanDiT)
IDS = "t5xxl_ids"  # in a conditioning: the ids of a second tokenizer, whose rows the network then reads (Anima)
Piece = int | dict[str, Any]  # an id, or a vector of a learned word


class Standing(int):
    """An id in place of a vector: of a frozen word's phrase, or for a tokenizer without a text encoder."""

    token: ConceptToken


Pairs = Mapping[str, Sequence[Sequence[tuple[Any, ...]]]]  # encoder → rows of (piece, weight)
Split = Callable[[Pairs], tuple[Pairs, Tensor] | None]  # rows → those of its clauses, and CLAUSES (`apart.py`)


def standing(token: ConceptToken, ids: Sequence[int]) -> list[Piece]:
    """These ids, each with the word that they stand for."""
    pieces = [Standing(number) for number in ids]
    for piece in pieces:
        piece.token = token
    return list(pieces)


def pieces_of(token: ConceptToken, encoder: str) -> list[Piece]:
    """The vectors of a word for this text encoder, in ComfyUI's format, each with its word.

    A tokenizer without a text encoder gets the padding's id for each, as ComfyUI gives it for `embedding:`.
    """
    if encoder not in token.vectors:
        return standing(token, [0] * token.words)
    layers = token.vectors[encoder]  # (layers, words, width)
    return [
        {"type": "embedding", "data": vectors[0], "clora_token": token, "clora_layers": vectors}
        for vectors in layers.unbind(1)
    ]


def word_at(piece: Any) -> str | None:
    """The learned word that this piece belongs to, if any."""
    token = token_at(piece)
    return token.word if token else None


def token_at(piece: Any) -> ConceptToken | None:
    """The learned word and its vectors that this piece belongs to, if any."""
    if isinstance(piece, Standing):
        return piece.token
    return piece.get("clora_token") if isinstance(piece, dict) else None


def places(rows: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
    """word → its places in rows of equal length, (rows, length) bool."""
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
    """The piece with the vector of this layer if its word is layer-wise; otherwise unchanged."""
    if not isinstance(piece, dict) or word_at(piece) is None or len(piece["clora_layers"]) == 1:
        return piece
    return {**piece, "data": piece["clora_layers"][layer]}


def layers_in(pieces: Sequence[Any]) -> int:
    """The number of layers of the words in these pieces; 1 if none is layer-wise."""
    vectors = (piece for piece in pieces if isinstance(piece, dict))
    return max((len(piece["clora_layers"]) for piece in vectors if word_at(piece)), default=1)


def over_states(masks: Mapping[str, Tensor], length: int) -> Tensor:
    """A mask over the states of a prompt, (length,) bool, from one over each encoder's tokens, (rows, n) bool.

    The states of CLIPs stand side by side. Those of other encoders follow (SD3, HunyuanDiT) or stand alone (Flux, which
    reads nothing but a pooled vector of CLIP). The front of a template may be cut off, and padding added behind.
    """
    flat = {name: mask.flatten() for name, mask in masks.items()}
    clips = [mask for name, mask in flat.items() if name in CLIPS]
    others = [mask for name, mask in flat.items() if name not in CLIPS]
    joined = torch.cat(others) if others else clips[0]
    if clips:
        longest = max(len(mask) for mask in clips)
        beside = torch.stack([F.pad(mask, (0, longest - len(mask))) for mask in clips]).any(0)
        if not others:
            joined = beside
        elif longest + len(joined) == length:
            joined = torch.cat([beside, joined])
    return joined[len(joined) - length :] if len(joined) > length else F.pad(joined, (0, length - len(joined)))


def rows_read(pairs: Pairs, extras: Mapping[str, Any], length: int) -> tuple[Pairs, int]:
    """The rows whose places the network's projections read, and how many there are.

    pairs: of all tokenizers. extras: that come with the states. length: the number of the states.
    """
    if SECOND in extras:
        return pairs, length + extras[SECOND].shape[1]
    if IDS not in extras:
        return pairs, length
    second = IDS.removesuffix("_ids")
    return {second: pairs[second]}, len(pairs[second][0])


def mark_words(clip: Any, split: Split | None = None) -> None:
    """Patch a clone of a CLIP: its conditionings contain the places and layers of learned words.

    split: if given, prompts with several words are encoded clause by clause.
    """
    encode = marked(clip.patcher.get_model_object("encode_token_weights"))
    clip.patcher.add_object_patch("encode_token_weights", _MarkedEncoding(encode.encode, split))


def marked(encode: Any) -> "_MarkedEncoding":
    """A text encoder's method that also returns the places and layers of learned words."""
    return encode if isinstance(encode, _MarkedEncoding) else _MarkedEncoding(encode)


def unmark_words(clip: Any) -> None:
    """Undo `mark_words` on a clone."""
    patch = clip.patcher.object_patches.get("encode_token_weights")
    if isinstance(patch, _MarkedEncoding):
        restore_method(clip.patcher, "encode_token_weights", patch.encode)


def restore_method(patcher: Any, name: str, method: Any) -> None:
    """Restore a method that we patched: the model's own, or another node's patch."""
    if method == MethodType(getattr(type(patcher.model), name), patcher.model):
        del patcher.object_patches[name]
    else:
        patcher.object_patches[name] = method


class _MarkedEncoding:
    """The text encoder's own method, with PLACES, LAYERS and CLAUSES added to the dictionary that it returns."""

    def __init__(self, encode: Any, split: Split | None = None) -> None:
        self.encode, self.split = encode, split

    def __call__(self, pairs: Pairs) -> tuple[Any, ...]:
        clauses = self.split(pairs) if self.split else None
        if clauses is None:
            return self._marked(pairs)
        states, _, extras = self._marked(clauses[0])
        return states, self.encode(pairs)[1], {**extras, CLAUSES: clauses[1]}  # pooled: of the whole prompt

    def _marked(self, pairs: Pairs) -> tuple[Any, Any, dict[str, Any]]:
        states, pooled, *more = self.encode(pairs)
        extra = more[0] if more else {}
        read, length = rows_read(pairs, extra, states.shape[1])
        masks = {name: places([[pair[0] for pair in row] for row in rows]) for name, rows in read.items()}
        sizes = {name: (len(rows), len(rows[0])) for name, rows in read.items()}
        word_places = {
            word: over_states(
                {name: own.get(word, torch.zeros(sizes[name], dtype=torch.bool)) for name, own in masks.items()},
                length,
            )[None]
            for word in sorted({word for own in masks.values() for word in own})
        }
        layers = self._all_layers(pairs, states)
        clips_only = set(pairs) <= set(CLIPS)
        chunk = max(length for _, length in sizes.values()) if clips_only else states.shape[1]
        pieces = [token_at(pair[0]) for rows in pairs.values() for row in rows for pair in row]
        frozen = frozenset(token.word for token in pieces if token and token.phrase)
        remember(states, chunk, word_places if read is pairs and length == states.shape[1] else {}, frozen, layers)
        if clips_only:
            self._compare_skip(pairs)
        extras = {**extra, PLACES: word_places, MARKED: states.shape[1]}
        if layers is not None:
            extras[LAYERS] = layers
        return states, pooled, extras

    def _compare_skip(self, pairs: Pairs) -> None:
        """Report a word that was learned with another CLIP skip than the prompt is encoded with."""
        tokens = {token_at(pair[0]): None for rows in pairs.values() for row in rows for pair in row}
        model = getattr(self.encode, "__self__", None)
        for encoder in model.children() if isinstance(model, nn.Module) else ():
            if isinstance(encoder, comfy.sd1_clip.SDClipModel):
                skip = -encoder.layer_idx if encoder.layer == "hidden" else 1
                if note := skip_note(filter(None, tokens), skip):
                    warn(note)
                return

    def _all_layers(self, pairs: Pairs, first: Tensor) -> Tensor | None:
        """The concatenated states of all layers, (1, tokens, layers · width); None if no word is layer-wise.

        first: the first layer's states.
        """
        count = layers_in([pair[0] for rows in pairs.values() for row in rows for pair in row])
        if count == 1:
            return None

        def at(layer: int) -> dict[str, list[list[tuple[Any, ...]]]]:
            return {
                name: [[(layer_of(piece, layer), *weight) for piece, *weight in row] for row in rows]
                for name, rows in pairs.items()
            }

        return torch.cat([first, *(self.encode(at(layer))[0] for layer in range(1, count))], dim=-1)
