"""A whole sequence on the starter model: learn every subject in turn, and look at all of them after each."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from ..learning.learn import Progress, learn
from ..method.recipe import Recipe, recipe_named, shared_by
from ..model.families.starter import STARTER
from ..museum.museum import Museum
from ..museum.overlap import size
from .exam import Examiner, Sight, Wording, concept_of, plain_prompts

PICTURES, VECTORS, LOOKS, PLAIN = 16, STARTER.numbers.vectors, 24, 48

# Learning rates of the deltas that `bench search` found; for all others the family's own.
RATES = {"sequential": 2e-3, "single-lora": 2e-3, "full-kv": 2e-3}

# Told the subject and the number of steps, gives a context in which every step is reported.
Watched = Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]]


@dataclass(frozen=True, eq=False)
class Course:
    """One recipe's way through the sequence: what was seen of concept j after learning concept i, j ≤ i.

    plain, plain_pictures: what prompts without a new word get at the end. seconds: spent learning, of which the
    processors worked `processor_seconds`, which waits for no other program; looking took `seconds_looking` more.
    """

    museum: Museum
    sights: list[list[Sight]]
    plain: float
    plain_pictures: Tensor
    seconds: float
    processor_seconds: float
    seconds_looking: float

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
    """The numbers that the starter model learns well with, as `bench search` found them (docs/measurements.md)."""
    recipe, own = recipe_named(method), STARTER.numbers
    usual = {
        "rank": min(recipe.rank, own.rank),
        "steps": own.steps,
        "learning_rate": RATES.get(method, own.learning_rate),
        "token_learning_rate": own.token_learning_rate,
    }
    usual |= {"batch_size": own.batch_size, "schedule": own.schedule, "seed": seed}
    return dataclasses.replace(recipe, **(usual | numbers))


def take_course(
    examiner: Examiner,
    subjects: Sequence[str],
    recipe: Recipe,
    *,
    watched: Watched,
    looked: Callable[[Sequence[Sight]], None] = lambda seen: None,
    looks: int = LOOKS,
    looks_between: int = LOOKS,
    plain: int = PLAIN,
    wording: Wording = "usual",
    together: bool = False,
) -> Course:
    """Learn every subject in turn; after each, look at all that were learned so far.

    looks: how many pictures, when a subject was just learned and at the end; looks_between: otherwise. plain: how many
    prompts without a new word are asked at the end. wording: see `concept_of`. The recipe "separate" is the oracle that
    is told which subject it is asked for: each is looked at with its own exhibit alone, and the last one's is what
    plain prompts meet. together: all subjects are learned at once, with as many ranks and steps as they would have had
    one by one, which is what learning in turn is measured by; every row of the matrices is then the same.
    """
    base = examiner.base
    museum = Museum(base.fingerprint)
    sights: list[list[Sight]] = []
    seconds, processor_seconds, begun_all = 0.0, 0.0, time.monotonic()

    def seen(subject: str) -> Museum:
        return museum.only([f"<{subject}>"]) if recipe.method == "separate" else museum

    def taught(after: Museum, names: Sequence[str], recipe: Recipe) -> Museum:
        nonlocal seconds, processor_seconds
        concepts = [concept_of(n, PICTURES, seed=recipe.seed, vectors=VECTORS, wording=wording) for n in names]
        begun, worked = time.monotonic(), time.process_time()
        with watched(f"learning {', '.join(f'<{name}>' for name in names)}", recipe.steps) as report:
            exhibits = learn(base, after, concepts, recipe, report=report)
        seconds += time.monotonic() - begun
        processor_seconds += time.process_time() - worked
        return after.with_exhibits(*exhibits)

    if together:
        museum = taught(museum, subjects, shared_by(recipe, len(subjects)))
    for name in subjects:
        if not together:
            museum = taught(museum, [name], recipe)
        known = subjects[: len(sights) + 1]
        closely = (name, *(subjects if name == subjects[-1] else ()))
        counts = [looks if each in closely else looks_between for each in known]
        row = zip(known, counts, strict=True)
        sights.append([examiner.look(seen(each), each, count=count) for each, count in row])
        looked(sights[-1])
    kept, pictures = plain_prompts(base, seen(subjects[-1]), examiner.judge, count=plain)
    looking = time.monotonic() - begun_all - seconds
    return Course(museum, sights, kept, pictures, seconds, processor_seconds, looking)
