"""Encode prompts with ComfyUI's own text encoders, with gradients to the words' vectors.

Without weights, and long prompts in chunks, as in `clora_core/over_diffusers/prompts.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.sd1_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from ...clora_core.model.base import Conditioning
from ...clora_core.model.chunks import chunks, lengths_of, side_by_side
from ...clora_core.model.concept import ConceptToken, unknown_start
from ...clora_core.model.layers import ROWS_AT_ONCE
from .conditioning import MARKED, PLACES, Piece, layer_of, layers_in, marked, over_states, places, rows_read
from .words import CLIP, encoders, known_words, speaking_copy, table, tokenizers, widths, word_tokenizer


def encode_with_clip(clip: CLIP, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
    """Encode the prompts with all encoders: concatenated states, (prompts, length, Σ widths) float32.

    (prompts, length, layers · Σ widths) if any prompt contains a layer-wise word. The CLIP must be loaded. The prompts
    may also contain words that it already knows.
    """
    for token in tokens:
        token.check_fits(widths(clip))
    words = {**known_words(clip), **{token.word: token for token in tokens}}
    model = clip.cond_stage_model
    model.reset_clip_options()
    if clip.layer_idx is not None:
        model.set_clip_options({"layer": clip.layer_idx})
    states, pooled, masks, lengths = [], None, {}, None
    for name, encoder in encoders(clip).items():
        tokenizer = tokenizers(clip)[name]
        pieces = word_tokenizer(name, tokenizer, words).pieces
        parts = [chunks(pieces(prompt), tokenizer.max_length - 2) for prompt in prompts]
        counts = [len(part) for part in parts]
        rows = [_row(tokenizer, chunk) for part in parts for chunk in part]
        masks = masks or {word: side_by_side(mask, counts) for word, mask in places(rows).items()}
        lengths = lengths_of(counts, tokenizer.max_length)
        layers = layers_in([piece for row in rows for piece in row])
        rows = [[layer_of(piece, layer) for piece in row] for row in rows for layer in range(layers)]
        encoded = [encoder.encode(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
        stacked = torch.cat([part[0].float() for part in encoded]).unflatten(0, (-1, layers)).transpose(1, 2)
        states.append(side_by_side(stacked, counts))
        pools = None if encoded[0][1] is None else torch.cat([part[1] for part in encoded])[::layers].split(counts)
        pooled = None if pools is None else torch.stack([part[0] for part in pools])
    reads_pooled = len(states) > 1  # SDXL's UNet also reads the last encoder's pooled vector
    joined = torch.cat(states, dim=-1).flatten(2)
    return Conditioning(joined, pooled.float() if reads_pooled and pooled is not None else None, masks, lengths=lengths)


def encode_as_the_model(
    clip: CLIP,
    prompts: Sequence[str],
    tokens: Sequence[ConceptToken],
    adapted: Callable[[Tensor, dict[str, Any]], Tensor],
) -> Conditioning:
    """Encode the prompts one by one as the model's own tokenizers and encoders do, templates and padding included.

    states: (prompts, longest, width) float32, with zeros after shorter prompts. adapted: gives what the network reads,
    from the text states (1, n, width) and what comes with them.
    """
    speaking = speaking_copy(clip, tokens)
    model = speaking.cond_stage_model
    model.reset_clip_options()
    if speaking.layer_idx is not None:
        model.set_clip_options({"layer": speaking.layer_idx})
    encode = marked(speaking.patcher.get_model_object("encode_token_weights"))
    encoded, reals, extras = [], [], []
    for prompt in prompts:
        pairs = speaking.tokenize(prompt)
        states, pooled, more = encode(pairs)
        read, length = rows_read(pairs, more, states.shape[1])
        states = adapted(states, more)
        encoded.append((states[0].float(), pooled, more.pop(PLACES)))
        del more[MARKED]
        real = over_states({name: _real(clip, name, rows) for name, rows in read.items()}, length)
        reals.append(F.pad(real, (0, states.shape[1] - length)))
        extras.append(more)
    longest = max(len(states) for states, _, _ in encoded)

    def padded(value: Tensor) -> Tensor:
        return F.pad(value, (0, longest - value.shape[-1]))

    states = torch.stack([F.pad(states, (0, 0, 0, longest - len(states))) for states, _, _ in encoded])
    pooled = None if encoded[0][1] is None else torch.cat([pooled.float() for _, pooled, _ in encoded])
    nothing = torch.zeros(1, longest, dtype=torch.bool)
    words = sorted({word for _, _, places in encoded for word in places})
    masks = {
        word: torch.cat([padded(places[word]) if word in places else nothing for _, _, places in encoded])
        for word in words
    }
    real = torch.stack([padded(real) for real in reals])
    lengths = torch.tensor([len(states) for states, _, _ in encoded])
    return Conditioning(states, pooled, masks, lengths=lengths, real=real, extras=extras)


def _real(clip: CLIP, name: str, rows: Sequence[Sequence[tuple[Any, ...]]]) -> Tensor:
    """Which tokens of an encoder's rows are not padding, (rows, n) bool. name: as the tokenizer calls the encoder."""
    known = tokenizers(clip)
    padding = known[name if name in known else f"clip_{name}"].pad_token
    real = torch.zeros(len(rows), len(rows[0]), dtype=torch.bool)
    for number, row in enumerate(rows):
        end = len(row)
        while end and isinstance(row[end - 1][0], int) and row[end - 1][0] == padding:
            end -= 1
        real[number, :end] = True
    return real


def vectors_of_word(clip: CLIP, word: str) -> dict[str, Tensor]:
    """An existing word's vectors: encoder → (tokens, width), float32 on the CPU. Raises ConceptError for others."""
    return {name: _vectors(clip, name, word) for name in encoders(clip)}


def _vectors(clip: CLIP, name: str, word: str) -> Tensor:
    """The vectors of one encoder, (tokens, width)."""
    tokenizer = tokenizers(clip)[name]
    pieces_of = word_tokenizer(name, tokenizer, known_words(clip)).pieces
    unknown = getattr(tokenizer.tokenizer, "unk_token_id", None)

    def is_known(text: str) -> bool:
        pieces = pieces_of(text)
        return bool(pieces) and unknown not in [piece for piece in pieces if isinstance(piece, int)]

    if not is_known(word):
        raise unknown_start(word, name, is_known)
    weights = table(encoders(clip)[name]).weight
    rows = [weights[piece] if isinstance(piece, int) else piece["data"] for piece in pieces_of(word)]
    return torch.stack([row.detach().float().cpu() for row in rows])


def _row(tokenizer: comfy.sd1_clip.SDTokenizer, chunk: Sequence[Piece]) -> list[Piece]:
    """Start token, the pieces of a chunk, end token, padding."""
    row = [tokenizer.start_token, *chunk, tokenizer.end_token]
    return row + [tokenizer.pad_token] * (tokenizer.max_length - len(row))
