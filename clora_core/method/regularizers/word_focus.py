"""Word focus: a new concept changes the keys and values of its word, not of what follows the word in its captions.

    L = w · mean over projections of  E‖Δ s‖² / E‖W s‖²        Δ = up·down

s: the text states after the new word in the step's captions, padding included; the divisor is the one of context
preservation. Right after a short caption, padding is at places where most everyday captions have words, so context
preservation hardly protects it, and training may put the concept there. Such a concept is lost as soon as the prompt
says more. The states after the word depend on the word, which is trained too, so their second moment is computed in
every step.

This regularizer is ours. A relative: Perfusion (arXiv:2305.01644), whose edits of keys and values act at the encoding
of the word, behind a gate.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import RecipeError
from ...model.low_rank import mean_square
from ..step import Setting, Step
from .protocol import Regularizer, Term


@dataclass(frozen=True)
class WordFocus(Regularizer):
    """The equation above. At weight 1, moving every key and value after the word by its own length costs 1."""

    weight: float = 5.0
    name: ClassVar[str] = "word_focus"
    everywhere_only: ClassVar[bool] = True
    one_concept_only: ClassVar[bool] = True

    def begin(self, setting: Setting) -> Term:
        family = setting.base.family
        if family.reads != "states":
            raise RecipeError(
                f"The projections of {family.title} do not read text states directly, so word_focus cannot tell which "
                "of them are the word's. Choose another recipe."
            )
        _, sizes = setting.moments
        earlier = {token.word for token in setting.past.tokens}

        def term(step: Step) -> Tensor:
            rows = states_after([mask for word, mask in step.conditioning.places.items() if word not in earlier], step)
            if not step.deltas or not len(rows):
                return step.zero()
            moment = rows.T @ rows / len(rows)
            shares = [mean_square(delta, moment) / sizes[place] for place, delta in step.deltas.items()]
            return self.weight * torch.stack(shares).mean()

        return term


def states_after(places: list[Tensor], step: Step) -> Tensor:
    """The text states after the first of these places in each caption, without the places themselves, (n, width).

    places: masks (b, tokens). The states have no gradient: the word does not adapt to this regularizer.
    """
    states = step.conditioning.states.detach().float()
    if not places:
        return states.new_zeros(0, states.shape[-1])
    at_word = torch.stack(places).any(0)
    after = (at_word.cumsum(1) > 0) & ~at_word
    if (lengths := step.conditioning.lengths) is not None:  # what fills up shorter captions is never read
        after &= torch.arange(after.shape[1], device=after.device) < lengths.to(after.device)[:, None]
    return states[after]
