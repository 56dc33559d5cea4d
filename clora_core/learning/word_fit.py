"""Word fit: deltas that were trained at their words only become ordinary ones, which act everywhere, in closed form.

    Δ' = argmin E‖(Δ' - Δ) x‖² + w · (E‖Δ' y‖² + E‖Δ' z‖²) + ε‖Δ'‖² = Δ M (M + w · (C + N) + ε)⁻¹

x: what a projection reads at the words, in everyday captions with a word put in at random places, and in the concepts'
own captions; M is its second moment. y: the rest of these prompts, moment N. z: everyday captions and the prompts of
earlier exhibits, moment C (`model/moments.py`). So the new deltas do at the words what the trained ones did, wherever
the words are, and as little as possible elsewhere. With Δ = up·down only `down` changes, so the rank stays.

While they are trained behind a gate, deltas cannot put a concept into the text after its word, where other prompts
would lose it, and nothing has to hold them back. This is ours. Related: closed-form edits of weights with the second
moments of what they should leave alone, as in UCE (arXiv:2308.14761) and MEMIT (arXiv:2210.07229).
"""

import random
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.recipe import Recipe
from ..model.base import Base
from ..model.concept import Concept, ConceptToken, words_in
from ..model.low_rank import LowRank, Moment, Sketch
from ..model.moments import word_moments
from ..model.projections import Projection
from ..model.text_states import Report
from .variation import possible_prompts

CONTEXTS = 160  # everyday captions with a word, and as many own captions at most, for all concepts together
RIDGE = 1e-4  # times the mean square of what is read: what no prompt shows stays as small as possible


@torch.no_grad()
def word_fitted(
    base: Base,
    deltas: Mapping[Projection, LowRank],
    prompts: Sequence[str],
    tokens: Sequence[ConceptToken],
    preserved: Mapping[Projection, Moment],
    weight: float,
    report: Report | None = None,
) -> dict[Projection, LowRank]:
    """Δ' of the equation above for deltas that were trained at these words, all on the CPU.

    prompts: with the words (`prompts_with`). preserved: C.
    """
    at_words, elsewhere = word_moments(base, prompts, tokens, report)
    fits: dict[int, Callable[[Tensor], Tensor]] = {}
    fitted = {}
    for place, delta in deltas.items():
        moment = at_words[place]
        if (fit := fits.get(id(moment))) is None:
            fit = fits[id(moment)] = _fit(moment, (preserved[place], elsewhere[place]), weight)
        fitted[place] = LowRank(delta.up, fit(delta.down.double()).float())
    return fitted


def prompts_with(
    concepts: Sequence[Concept], recipe: Recipe, captions: Sequence[str], known: Sequence[str] = ()
) -> list[str]:
    """Prompts with the words of the concepts, as many of each: the word alone and after an article, its own captions,
    and everyday captions with the word put in at a random place. known: earlier words, which no prompt may contain."""
    rng, count = random.Random("word fit"), max(1, CONTEXTS // len(concepts))
    prompts: list[str] = []
    for concept in concepts:
        word = concept.word
        own = dict.fromkeys(text for text in possible_prompts(concept, recipe) if not (known and words_in(text, known)))
        prompts += [word, f"a {word}", *_spread(list(own), count)]
        for caption in _spread(captions, count):
            parts = caption.split()
            place = rng.randrange(len(parts) + 1)
            prompts.append(" ".join([*parts[:place], word, *parts[place:]]))
    return list(dict.fromkeys(prompts))


def _spread(texts: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly spread."""
    count = min(most, len(texts))
    return [texts[number * len(texts) // count] for number in range(count)]


def _fit(at_words: Moment, others: Sequence[Moment], weight: float) -> Callable[[Tensor], Tensor]:
    """`down` → the fitted one, for all projections that read the same. Computed in float64, on the CPU."""
    moments = [moment.cpu().double() for moment in (at_words, *others) if isinstance(moment, Tensor)]
    if moments:
        change = _solved(moments[0] + weight * sum(moments[1:]), moments[0], len(moments[0]))
        return lambda down: down @ change.T
    parts = [moment.columns.cpu().double() for moment in (at_words, *others) if isinstance(moment, Sketch)]
    columns = torch.cat([parts[0], *(weight**0.5 * part for part in parts[1:])], dim=1)

    def fit(down: Tensor) -> Tensor:
        wanted = F.pad(parts[0].T @ down.T, (0, 0, 0, columns.shape[1] - parts[0].shape[1]))
        return (columns @ _solved(columns.T @ columns, wanted, len(columns))).T

    return fit


def _solved(matrix: Tensor, right: Tensor, width: int) -> Tensor:
    """(matrix + ε)⁻¹ right. width: of what is read, also if the matrix is that of products between columns."""
    ridge = RIDGE * matrix.trace() / width * torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.linalg.solve(matrix + ridge, right)
