"""The text states of prompts that a new concept should not change, and their second moment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Base, Conditioning
from .concept import ConceptToken

AT_ONCE = 16


@torch.no_grad()
def text_states(base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Tensor:
    """The text states of all prompts at all places, (prompts · places, width) float32.

    Prompts that are encoded with a layer-wise word have more states. These are scaled, so that every prompt has the
    same weight in a mean of squares.
    """
    parts = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
    width = base.family.text_width
    states = [_all_of(base.encode_prompts(part, tokens)).reshape(-1, width) for part in parts]
    count = sum(map(len, states))
    shares = [len(part) * count / (len(prompts) * len(rows)) for part, rows in zip(parts, states, strict=True)]
    return torch.cat([rows * share**0.5 for rows, share in zip(states, shares, strict=True)])


def _all_of(conditioning: Conditioning) -> Tensor:
    """The states without what fills up shorter prompts."""
    states, lengths = conditioning.states.float(), conditioning.lengths
    if lengths is None:
        return states
    return torch.cat([rows[:length] for rows, length in zip(states, lengths.tolist(), strict=True)])


def preserved_states(base: Base, old_prompts: Sequence[str], old_tokens: Sequence[ConceptToken]) -> list[Tensor]:
    """The states of everyday prompts and, if there are any, of earlier exhibits' prompts; each (n, width) float32."""
    groups = [text_states(base, base.family.captions, ())]
    return [*groups, text_states(base, old_prompts, old_tokens)] if old_prompts else groups


def second_moment(groups: Sequence[Tensor]) -> Tensor:
    """C = E[s sᵀ], (width, width) float32; every group of states has the same weight."""
    return torch.stack([states.T @ states / len(states) for states in groups]).mean(0)
