"""The text states of prompts that a new concept should not change, and their second moment."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .base import Base, Conditioning
from .concept import ConceptToken

AT_ONCE = 16

Report = Callable[[int, int], None]  # called with how much is read, and of how much; may raise to stop
Item = TypeVar("Item")
Groups = Sequence[tuple[float, Tensor]]  # each group's share of the whole, and its states (n, width) float32


@torch.no_grad()
def text_states(
    base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken], report: Report | None = None
) -> tuple[Tensor, Tensor]:
    """The text states of all prompts, (n, width) float32, and which of them are at one of the words, (n,) bool.

    Prompts that are encoded with a layer-wise word have more states. These are scaled, so that every prompt has the
    same weight in a mean of squares.
    """
    parts = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
    encoded = [_all_of(base.encode_prompts(part, tokens), base.family.text_width) for part in reported(parts, report)]
    count = sum(len(rows) for rows, _ in encoded)
    shares = [len(part) * count / (len(prompts) * len(rows)) for part, (rows, _) in zip(parts, encoded, strict=True)]
    states = torch.cat([rows * share**0.5 for (rows, _), share in zip(encoded, shares, strict=True)])
    return states, torch.cat([at_words for _, at_words in encoded])


def reported(items: Sequence[Item], report: Report | None) -> Iterator[Item]:
    """The items in turn, each reported when it is done."""
    for number, item in enumerate(items):
        yield item
        if report:
            report(number + 1, len(items))


def _all_of(conditioning: Conditioning, width: int) -> tuple[Tensor, Tensor]:
    """The states without what fills up shorter prompts, and which of them are at a word."""
    states, used = conditioning.states.float(), torch.ones(conditioning.states.shape[:2], dtype=torch.bool)
    if (lengths := conditioning.lengths) is not None:
        used = torch.arange(used.shape[1]) < lengths[:, None]
    used = used.to(states.device)
    rows = states[used].unflatten(1, (-1, width))  # (n, layers, width)
    return rows.flatten(0, 1), conditioning.at_words()[used].repeat_interleave(rows.shape[1])


def preserved_states(
    base: Base, old_prompts: Sequence[str], old_tokens: Sequence[ConceptToken], report: Report | None = None
) -> Groups:
    """The states of everyday prompts and, if there are any, of the words and of the rest of earlier exhibits' prompts.

    `moments.preserved_moments` explains the shares.
    """
    everyday, _ = text_states(base, base.family.captions, (), report)
    if not old_prompts:
        return [(1.0, everyday)]
    states, at_words = text_states(base, old_prompts, old_tokens, report)
    kinds = [rows for rows in (states[at_words], states[~at_words]) if len(rows)]
    return [(0.5, everyday), *((0.5 / len(kinds), rows) for rows in kinds)]


def second_moment(groups: Groups) -> Tensor:
    """C = E[s sᵀ], (width, width) float32."""
    return torch.stack([share / len(states) * states.T @ states for share, states in groups]).sum(0)
