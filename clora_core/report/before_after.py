"""Exhibits before and after: one of their own pictures, a sample when they were learned, and the same sample now."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..learning.effect import spread
from ..learning.learn import Learning
from ..learning.start import first_token
from ..model.base import Base
from ..model.concept import ConceptToken
from ..model.sampling import Sampling, sample
from ..museum.museum import Exhibit, Museum, complete_at, viewing
from .comparing import State
from .review import prompt_of

MOST = 5  # exhibits, spread evenly over the museum, the last one among them


@dataclass(frozen=True)
class BeforeAfter:
    """One exhibit. real: a JPEG of one of its own pictures; b"" if the museum has none. then, now: samples of its
    prompt from the same noise, (3, height, width) in [-1, 1]; the same ones if nothing was learned after it."""

    word: str
    real: bytes
    then: Tensor
    now: Tensor


def before_and_after(
    base: Base,
    museum: Museum,
    sampling: Sampling,
    *,
    latent_shape: tuple[int, ...],
    report: Callable[[int, int], None],
) -> tuple[BeforeAfter, ...]:
    """`report(done, total)` is called after every sampling step and may raise to stop."""
    count, now, steps = len(museum.exhibits), State(base, museum), itertools.count(1)
    places = spread(range(count), MOST)
    ends = [complete_at(museum.exhibits, place) for place in places]
    total = sampling.steps * sum(1 if end == count else 2 for end in ends)

    def tick(step: int, of: int) -> None:
        report(next(steps), total)

    def picture(state: State, prompt: str) -> Tensor:
        with state.viewing():
            tokens = state.museum.tokens
            return sample(base, [prompt], tokens, sampling, latent_shape=latent_shape, report=tick)[0]

    rows = []
    for place, end in zip(places, ends, strict=True):
        exhibit = museum.exhibits[place]
        prompt = prompt_of(exhibit)
        after = picture(now, prompt)
        then = State(base, replace(museum, exhibits=museum.exhibits[:end]))
        before = after if end == count else picture(then, prompt)
        rows.append(BeforeAfter(exhibit.word, exhibit.thumbnail, before, after))
    return tuple(rows)


def compared(
    learning: Learning, exhibits: Sequence[Exhibit], report: Callable[[int, int], None]
) -> tuple[BeforeAfter, ...]:
    """`before_and_after` of the museum with what was learned, in the size of the last concept's pictures."""
    base, museum = learning.base, learning.museum.with_exhibits(*exhibits)
    shape = base.latent_shape(*learning.concepts[-1].size)
    return before_and_after(base, museum, _sampling(base), latent_shape=shape, report=report)


def sampled(
    learning: Learning,
    prompts: Sequence[str],
    tokens: Sequence[ConceptToken],
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Samples of the model as it is, (n, 3, height, width) in [-1, 1], in the size of the last concept's pictures."""
    base = learning.base
    shape = base.latent_shape(*learning.concepts[-1].size)
    return sample(base, prompts, tokens, _sampling(base), latent_shape=shape, report=report)


def sampled_now(learning: Learning, token: ConceptToken, report: Callable[[int, int], None] | None = None) -> Tensor:
    """A sample (3, height, width) in [-1, 1] of the last concept's prompt, while it is learned."""
    return sampled(learning, [learning.concepts[-1].prompt], [*learning.museum.tokens, token], report)[0]


def sampled_before(learning: Learning) -> Tensor:
    """The same before it is learned."""
    base, museum, concept = learning.base, learning.museum, learning.concepts[-1]
    with viewing(base, museum.compact(), museum.gated):
        return sampled_now(learning, first_token(base, concept, learning.recipe))


def _sampling(base: Base) -> Sampling:
    return Sampling(guidance=base.family.guidance)
