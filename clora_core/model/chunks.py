"""Prompts longer than a text encoder reads: it reads them in chunks, and the chunks' states stand one after another.

As ComfyUI's own prompt node does it: every chunk is a row of its own, with start, end and padding, and the pooled
vector is that of the first. A network attends to all tokens equally, so prompts of different lengths are not padded,
but predicted in groups.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .base import Conditioning

Piece = TypeVar("Piece")


def chunks(pieces: Sequence[Piece], room: int) -> list[Sequence[Piece]]:
    """The pieces in chunks of `room`; one empty chunk if there are none."""
    return [pieces[start : start + room] for start in range(0, max(1, len(pieces)), room)]


def side_by_side(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of each prompt, one after another: (rows, length, …) → (prompts, most · length, …), zeros at the end.

    counts: how many rows each prompt has.
    """
    return pad_sequence([part.flatten(0, 1) for part in rows.split(list(counts))], batch_first=True)


def lengths_of(counts: Sequence[int], length: int) -> Tensor | None:
    """`Conditioning.lengths` of prompts with this many rows of that length each."""
    return torch.tensor(counts) * length if len(set(counts)) > 1 else None


def by_length(
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor],
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """`predict`, with prompts of different lengths in a group for each length."""
    if conditioning.lengths is None:
        return predict(noisy, timesteps, conditioning)
    parts, order = [], []
    for rows, group in groups_of(conditioning):
        parts.append(predict(noisy[rows.to(noisy.device)], timesteps[rows.to(timesteps.device)], group))
        order.append(rows)
    back = torch.cat(order).argsort()
    return torch.cat(parts)[back.to(parts[0].device)]


def groups_of(conditioning: Conditioning) -> Iterator[tuple[Tensor, Conditioning]]:
    """The prompts of each length: their numbers, (n,), and themselves."""
    if conditioning.lengths is None:
        yield torch.arange(len(conditioning.states)), conditioning
        return
    for length in conditioning.lengths.unique().tolist():
        rows = (conditioning.lengths == length).nonzero().flatten()
        group = conditioning[rows]
        places = {word: mask[:, :length] for word, mask in group.places.items()}
        yield rows, replace(group, states=group.states[:, :length], places=places, lengths=None)
