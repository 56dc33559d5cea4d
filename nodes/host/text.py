"""Encode prompts through ComfyUI's own text encoders as the engine asks for it: gradients reach the words' vectors.

Rows are laid out as `clora_core.prompts` does it: no weights, cut at the encoder's length, one row per prompt.
"""

from collections.abc import Sequence

import comfy.sd1_clip
import torch
from torch import Tensor

from ...clora_core.errors import ConceptError
from ...clora_core.model.base import Conditioning
from ...clora_core.model.concept import ConceptToken
from ...clora_core.model.layers import ROWS_AT_ONCE
from .conditioning import Piece, layer_count, layer_of, places, word_at
from .words import CLIP, check_fits, encoders, known_words, speaking, table, tokenizers, widths


def encode(clip: CLIP, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
    """Encode the prompts by all encoders: states side by side, (prompts, length, Σ widths) float32.

    Where a layer-wise word stands in any of them, (prompts, length, layers · Σ widths). The CLIP must be loaded. Words
    it knows already may stand in the prompts too.
    """
    for token in tokens:
        check_fits(token, widths(clip))
    words = {**known_words(clip), **{token.word: token for token in tokens}}
    model = clip.cond_stage_model
    model.reset_clip_options()
    if clip.layer_idx is not None:
        model.set_clip_options({"layer": clip.layer_idx})
    states, pooled, stand = [], None, {}
    for name, encoder in encoders(clip).items():
        tokenizer = tokenizers(clip)[name]
        pieces = speaking(name, tokenizer, words).pieces
        rows = [_row(tokenizer, pieces(prompt), prompt) for prompt in prompts]
        stand = stand or places(rows)
        wide = layer_count([piece for row in rows for piece in row])
        each = [[layer_of(piece, layer) for piece in row] for row in rows for layer in range(wide)]
        parts = [encoder.encode(each[start : start + ROWS_AT_ONCE]) for start in range(0, len(each), ROWS_AT_ONCE)]
        states.append(torch.cat([part[0].float() for part in parts]).unflatten(0, (-1, wide)).transpose(1, 2))
        pooled = None if parts[0][1] is None else torch.cat([part[1] for part in parts])[::wide]
    pools = len(states) > 1  # SDXL's UNet also reads the last encoder's pooled vector
    joined = torch.cat(states, dim=-1).flatten(2)
    return Conditioning(joined, pooled.float() if pools and pooled is not None else None, stand)


def word_vectors(clip: CLIP, word: str) -> dict[str, Tensor]:
    """An existing word's vectors, encoder → (its ids, width), float32 on the CPU. Raises ConceptError for others."""
    vectors = {}
    for name, encoder in encoders(clip).items():
        tokenizer = tokenizers(clip)[name]
        pieces = speaking(name, tokenizer, known_words(clip)).pieces(word)
        ids = [piece for piece in pieces if isinstance(piece, int)]
        if not pieces or getattr(tokenizer.tokenizer, "unk_token_id", None) in ids:
            raise ConceptError(f"The text encoder {name} does not know '{word}'. Choose a word that it knows.")
        rows = [table(encoder).weight[piece] if isinstance(piece, int) else piece["data"] for piece in pieces]
        vectors[name] = torch.stack([row.detach().float().cpu() for row in rows])
    return vectors


def _row(tokenizer: comfy.sd1_clip.SDTokenizer, pieces: Sequence[Piece], prompt: str) -> list[Piece]:
    """Start, the prompt's pieces as far as they fit, end, padding."""
    room = tokenizer.max_length - 2
    if any(word_at(piece) for piece in pieces[room:]):
        raise ConceptError(
            f"A learned word stands too late in '{prompt}': the text encoder reads {room} tokens. Write it earlier, or "
            "shorten the prompt."
        )
    row = [tokenizer.start_token, *pieces[:room], tokenizer.end_token]
    return row + [tokenizer.pad_token] * (tokenizer.max_length - len(row))
