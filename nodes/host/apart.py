"""Keep the learned words of one prompt apart: each is encoded by itself, and heard in its own strip of the picture.

A prompt with two words or more is split into a clause for each. Their rows follow one another, as after Conditioning
(Concat). In the cross-attentions, an additive mask lets each strip of the picture read the rows of its own clause only:

    softmax(q·kᵀ/√d + mask)·v        mask: 0 where the strip reads the row, else -10⁴

The strips are equal and lie along the longer side, in the order of the words. One pass of the network draws all of
them, so self-attention and convolutions still see the whole picture (docs/two-concepts.md).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sd1_clip
import torch
from torch import Tensor, nn

from ...clora_core.model.chunks import chunks
from .conditioning import CLIPS, Pairs, word_at
from .progress import warn

UNEVEN = (
    "keep_apart has no effect in some layers, where another node changed the picture's size or left out parts of it. "
    "Without that node, the words stay apart."
)
UNHEARD = -1e4  # fits float16; with -inf, attention that is computed in parts would divide 0 by 0
Pair = tuple[Any, ...]  # (piece, weight)


@dataclass(frozen=True, eq=False)
class Clauses:
    """Splits prompts. words: those that are kept apart. tokenizers: of each text encoder, by its name ("clip_l").

    A clause has its word and what follows it, up to the next word. All have what is before the first word, and what is
    behind the first comma after the last word.
    """

    words: Collection[str]
    tokenizers: Mapping[str, comfy.sd1_clip.SDTokenizer]

    def of(self, pairs: Pairs) -> tuple[Pairs, Tensor] | None:
        """The rows of all clauses, and the number of each token's clause, (1, tokens), from 1.

        None if there is nothing to keep apart: fewer than two words, or encoders other than CLIP.
        """
        pieces = (pair[0] for rows in pairs.values() for row in rows for pair in row)
        order = list(dict.fromkeys(word for piece in pieces if (word := word_at(piece)) in self.words))
        if len(order) < 2 or not set(pairs) <= set(CLIPS):
            return None
        parts, length = {}, 0
        for name, rows in pairs.items():
            tokenizer = self.tokenizers[f"clip_{name}"]
            length = tokenizer.max_length
            owned = self._owned(_content(tokenizer, rows), tokenizer.tokenizer(",")["input_ids"][1:-1])
            own = [[pair for pair, owner in owned if owner in (None, word)] for word in order]
            parts[name] = [chunks(clause, length - 2) for clause in own]
        counts = [max(len(part) for part in clause) for clause in zip(*parts.values(), strict=True)]
        joined = {}
        for name, clauses in parts.items():
            filled = [[*part, *[()] * (count - len(part))] for part, count in zip(clauses, counts, strict=True)]
            joined[name] = [_row(self.tokenizers[f"clip_{name}"], chunk) for part in filled for chunk in part]
        numbers = torch.arange(1, len(order) + 1).repeat_interleave(torch.tensor(counts) * length)
        return joined, numbers[None]

    def _owned(self, content: Sequence[Pair], comma: Sequence[int]) -> list[tuple[Pair, str | None]]:
        """Each piece with the word whose clause it belongs to; None for all clauses."""
        words = [word if (word := word_at(piece)) in self.words else None for piece, *_ in content]
        last = max((place for place, word in enumerate(words) if word), default=-1)
        owned, owner = [], None
        for place, (pair, word) in enumerate(zip(content, words, strict=True)):
            if place > last and isinstance(pair[0], int) and pair[0] in comma:
                owner = None
            owner = word or owner
            owned.append((pair, owner))
        return owned


def _content(tokenizer: comfy.sd1_clip.SDTokenizer, rows: Sequence[Sequence[Pair]]) -> list[Pair]:
    """What rows contain without start token, end token and padding."""
    content = []
    for row in rows:
        ends = (n for n, (piece, *_) in enumerate(row) if n and isinstance(piece, int) and piece == tokenizer.end_token)
        content += row[1 : next(ends, len(row))]
    return content


def _row(tokenizer: comfy.sd1_clip.SDTokenizer, chunk: Sequence[Pair]) -> list[Pair]:
    row = [(tokenizer.start_token, 1.0), *chunk, (tokenizer.end_token, 1.0)]
    return row + [(tokenizer.pad_token, 1.0)] * (tokenizer.max_length - len(row))


@contextmanager
def listening(attentions: Collection[nn.Module], clauses: Tensor, latents: Tensor) -> Iterator[None]:
    """While entered, each strip of the picture reads its own clause in these cross-attentions.

    clauses: (b, tokens); rows of zeros, such as those of the empty prompt, are read everywhere. latents: (b, c, h, w).
    """
    masks: dict[int, Tensor | None] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        count = inputs[0].shape[1]
        if count not in masks:
            height, width = latents.shape[-2:]
            while height * width > count:  # as a UNet halves them
                height, width = -(-height // 2), -(-width // 2)
            fits = height * width == count
            masks[count] = UNHEARD * (~heard(clauses, height, width)).to(inputs[0]) if fits else None
        return inputs, {**options, "mask": masks[count]}

    with ExitStack() as handles:
        for attention in attentions if clauses.any() else ():
            handles.callback(attention.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
    if any(mask is None for mask in masks.values()):
        warn(UNEVEN)


def heard(clauses: Tensor, height: int, width: int) -> Tensor:
    """Which tokens each place of a picture reads, (b, height · width, tokens) bool. clauses: (b, tokens)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    along, side = (columns, width) if width >= height else (rows, height)
    count = clauses.amax(1).long()[:, None]
    strip = 1 + along.flatten().to(clauses.device) * count // side  # (b, height · width)
    return (clauses[:, None] == 0) | (clauses[:, None] == strip[..., None])
