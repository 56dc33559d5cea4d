"""What the cross-attention reads of prompts that a new concept should leave alone: the moments of their text states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Base
from .concept import ConceptToken

AT_ONCE = 16


@torch.no_grad()
def text_states(base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Tensor:
    """The text states of all prompts at all places, (prompts · places, width) float32.

    Prompts that are encoded beside a layer-wise word have more of them, and these are scaled, so that in a mean of
    squares every prompt weighs the same.
    """
    parts = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]
    width = base.family.text_width
    states = [base.encode_prompts(part, tokens).states.float().reshape(-1, width) for part in parts]
    count = sum(map(len, states))
    shares = [len(part) * count / (len(prompts) * len(each)) for part, each in zip(parts, states, strict=True)]
    return torch.cat([each * share**0.5 for each, share in zip(states, shares, strict=True)])


def kept_states(base: Base, old_prompts: Sequence[str], old_words: Sequence[ConceptToken]) -> list[Tensor]:
    """The states of everyday prompts and, if there are any, those of old ones; each (n, width) float32."""
    groups = [text_states(base, base.family.captions, ())]
    return [*groups, text_states(base, old_prompts, old_words)] if old_prompts else groups


def second_moment(base: Base, old_prompts: Sequence[str], old_words: Sequence[ConceptToken]) -> Tensor:
    """C = E[s sᵀ], (width, width) float32; everyday and old prompts weigh half each."""
    return moment_of(kept_states(base, old_prompts, old_words))


def moment_of(groups: Sequence[Tensor]) -> Tensor:
    """The second moment of states, (width, width); every group weighs the same."""
    return torch.stack([states.T @ states / len(states) for states in groups]).mean(0)
