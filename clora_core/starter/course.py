"""A whole sequence on the starter model: learn every subject in turn, and look at all of them after each."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..base import Base
from ..concept import Concept
from ..learn import Progress, learn
from ..measure import size
from ..museum import Museum
from ..recipe import Recipe, recipe_named
from ..regularizers import ContextPreservation, Regularizer, SelfRegularization
from .exam import Sight, drawn, look, plain_prompts
from .judge import Judge

PICTURES, VECTORS, LOOKS, PLAIN = 16, 2, 24, 48

TUNED: dict[type[Regularizer], Regularizer] = {
    SelfRegularization: SelfRegularization(weight=3.0),
    ContextPreservation: ContextPreservation(weight=5.0),
}

# Told the subject and the number of steps, gives a context in which every step is reported.
Watched = Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]]


@dataclass(frozen=True, eq=False)
class Course:
    """One recipe's way through the sequence: what was seen of concept j after learning concept i, j ≤ i."""

    museum: Museum
    sights: list[list[Sight]]
    plain: float
    seconds: float

    @property
    def alignment(self) -> list[list[float | None]]:
        return self._matrix([[sight.alignment for sight in row] for row in self.sights])

    @property
    def attributes(self) -> list[list[float | None]]:
        return self._matrix([[sight.attributes for sight in row] for row in self.sights])

    def _matrix(self, rows: list[list[float]]) -> list[list[float | None]]:
        return [[*row, *[None] * (len(rows) - len(row))] for row in rows]

    @property
    def norms(self) -> list[float]:
        """‖Δ‖_F of every exhibit, in order."""
        return [size(exhibit) for exhibit in self.museum.exhibits]


def starter_recipe(method: str, *, seed: int = 0, **numbers: object) -> Recipe:
    """The numbers that the starter model learns well with; README says how they were found."""
    recipe = recipe_named(method)
    usual = {"rank": min(recipe.rank, 4), "steps": 400, "learning_rate": 6e-3, "token_learning_rate": 5e-2}
    usual |= {"batch_size": 16, "schedule": "cosine", "seed": seed}
    regularizers = tuple(TUNED.get(type(regularizer), regularizer) for regularizer in recipe.regularizers)
    return dataclasses.replace(recipe, regularizers=regularizers, **(usual | numbers))


def take_course(
    base: Base,
    judge: Judge,
    subjects: Sequence[str],
    recipe: Recipe,
    *,
    watched: Watched,
    looked: Callable[[Sequence[Sight]], None] = lambda seen: None,
    looks: int = LOOKS,
    plain: int = PLAIN,
) -> Course:
    """Learn every subject in turn; after each, look at all that were learned so far, `looks` pictures each.

    plain: how many prompts without a new word are asked at the end.
    """
    museum = Museum(base.fingerprint)
    sights: list[list[Sight]] = []
    begun = time.monotonic()
    for name in subjects:
        concept = Concept(f"<{name}>", drawn(name, PICTURES, seed=recipe.seed), vectors=VECTORS)
        with watched(f"learning <{name}>", recipe.steps) as report:
            museum = learn(base, museum, concept, recipe, report=report)
        known = subjects[: len(sights) + 1]
        sights.append([look(base, museum, judge, each, word=f"<{each}>", count=looks) for each in known])
        looked(sights[-1])
    seconds = time.monotonic() - begun
    return Course(museum, sights, plain_prompts(base, museum, judge, count=plain)[0], seconds)
