"""Word focus: a new concept changes the keys and values of its word, not of what follows the word in its captions.

    L = w · mean over projections of  E‖Δ x‖² / E‖W x‖²        Δ = up·down

x: what a projection reads after the new word in the step's captions, padding included; the divisor is the one of
context preservation. Right after a short caption, padding is at places where most everyday captions have words, so
context preservation hardly protects it, and training may put the concept there. Such a concept is lost as soon as the
prompt says more. The word also learns more slowly: what a fast word becomes depends on the words around it. A style is
to change what follows its word, so this is for objects only.

This regularizer is ours. A relative: Perfusion (arXiv:2305.01644), whose edits of keys and values act at the encoding
of the word, behind a gate.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...model.low_rank import Sketch, mean_square
from ..step import Setting, Step
from .protocol import Regularizer, Term

if TYPE_CHECKING:
    from ...model.base import Conditioning


@dataclass(frozen=True)
class WordFocus(Regularizer):
    """The equation above. At weight 1, moving every key and value after the word by its own length costs 1.

    x has no gradient: the word does not adapt to this regularizer.
    """

    weight: float = 5.0
    name: ClassVar[str] = "word_focus"
    everywhere_only: ClassVar[bool] = True
    reads_inputs: ClassVar[bool] = True
    slower_word: ClassVar[float] = 10.0
    objects_only: ClassVar[bool] = True

    def begin(self, setting: Setting) -> Term:
        _, sizes = setting.moments
        earlier = {token.word for token in setting.past.tokens}

        def term(step: Step) -> Tensor:
            passes = [(after_words(group, earlier), inputs) for group, inputs in step.inputs]
            if not passes:  # at weight 0, nothing is recorded
                return step.zero()
            shares = [step.zero()]
            for place, delta in step.deltas.items():
                rows = torch.cat([rows_at(inputs[place], after) for after, inputs in passes])
                count = torch.stack([after.sum() for after, _ in passes]).sum().clamp(min=1)
                shares.append(mean_square(delta, Sketch(rows.T / count.to(rows).sqrt())) / sizes[place])
            return self.weight * torch.stack(shares).sum() / max(1, len(step.deltas))

        return term


def after_words(conditioning: Conditioning, earlier: Collection[str]) -> Tensor:
    """Where the text after the first new word is, without the new words, (b, tokens) bool. earlier: the other words."""
    at_word = conditioning.at_words(without=earlier)
    return (at_word.cumsum(1) > 0) & ~at_word


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """The rows of text in x (b, rows, width) as (n, width) float32, all but those at these places (b, tokens) zero.

    PixArt joins the rows of all prompts: x (1, b · rows, width). Rows after the text are a picture's.
    """
    x = x.reshape(len(places), -1, x.shape[-1])[:, : places.shape[1]].float()
    return (x * places[:, : x.shape[1], None].to(x.device)).flatten(0, 1)
