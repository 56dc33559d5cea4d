"""A sequence of concepts on the starter model: learn every subject in turn, and evaluate all of them after each."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..learning.learn import learn
from ..learning.loop import Progress
from ..method.recipe import Recipe, recipe_named, shared_by
from ..model.base import Base
from ..model.concept import Concept
from ..model.families.starter import STARTER
from ..museum.museum import Museum
from ..museum.overlap import size
from .exam import Evaluation, Wording, concept_of, drawn

PICTURES, VECTORS, SAMPLES, PLAIN = 16, STARTER.numbers.vectors, 12, 24

# Learning rates of the deltas that were tuned (docs/measurements.md); for all others the family's own.
RATES = {"sequential": 2e-3, "single-lora": 2e-3, "full-kv": 2e-3}

# (title, steps) → a context manager that gives the `report` callback of a learning.
Watched = Callable[[str, int], AbstractContextManager[Callable[[Progress], None]]]


class Examining(Protocol):
    """What a course needs of an examiner: see `exam.Examiner`."""

    @property
    def base(self) -> Base: ...

    def evaluate(self, museum: Museum, subject: str, *, count: int) -> Evaluation: ...

    def plain_prompts(self, museum: Museum, *, count: int) -> tuple[float, Tensor]: ...


def first_drawn(subject: str, count: int) -> Tensor:
    """Real pictures of a built-in subject."""
    return drawn(subject, count, seed=0)


@dataclass(frozen=True, eq=False)
class Course:
    """The results of one recipe on a sequence. evaluations[i][j]: of concept j after learning concept i, j ≤ i.

    plain, plain_pictures: the result of plain prompts at the end. seconds, processor_seconds: of learning;
    seconds_evaluating: of sampling and judging.
    """

    museum: Museum
    evaluations: list[list[Evaluation]]
    plain: float
    plain_pictures: Tensor
    seconds: float
    processor_seconds: float
    seconds_evaluating: float

    @property
    def alignment(self) -> list[list[float | None]]:
        return self._matrix([[evaluation.alignment for evaluation in row] for row in self.evaluations])

    @property
    def attributes(self) -> list[list[float | None]]:
        return self._matrix([[evaluation.attributes for evaluation in row] for row in self.evaluations])

    def _matrix(self, rows: list[list[float]]) -> list[list[float | None]]:
        return [[*row, *[None] * (len(rows) - len(row))] for row in rows]

    def rows(
        self, real: int, opening: str = "", *, shown: Callable[[str, int], Tensor] = first_drawn
    ) -> list[tuple[str, list[Tensor | None]]]:
        """For `contact_sheet`, a row for each concept: this many real pictures, then those after each learned concept.

        opening: of the rows' names. shown: subject, count → its real pictures.
        """
        rows = []
        for place, word in enumerate(self.museum.words):
            blocks = [row[place].pictures if place < len(row) else None for row in self.evaluations]
            rows.append((f"{opening}{word}", [shown(word.strip("<>"), real), *blocks]))
        return rows

    @property
    def norms(self) -> list[float]:
        """‖Δ‖_F of every exhibit, in order."""
        return [size(exhibit) for exhibit in self.museum.exhibits]


def starter_recipe(method: str, *, seed: int = 0, **numbers: object) -> Recipe:
    """The recipe with the starter model's numbers (docs/measurements.md)."""
    recipe, own = recipe_named(method), STARTER.numbers
    usual = {
        "rank": min(recipe.rank, own.rank),
        "steps": own.steps_of(word_fit=recipe.word_fit > 0),
        "learning_rate": RATES.get(method, own.learning_rate),
        "token_learning_rate": own.token_learning_rate,
    }
    usual |= {"batch_size": own.batch_size, "schedule": own.schedule, "seed": seed}
    return dataclasses.replace(recipe, **(usual | numbers))


def shown_for(museum: Museum, subject: str) -> Museum:
    """What the subject is sampled with: the museum; or its own exhibit alone after "separate", which is an oracle."""
    return museum.only([f"<{subject}>"]) if museum.exhibits[0].recipe.method == "separate" else museum


def take_course(
    examiner: Examining,
    subjects: Sequence[str],
    recipe: Recipe,
    *,
    watched: Watched,
    evaluated: Callable[[Sequence[Evaluation]], None] = lambda evaluations: None,
    samples: int = SAMPLES,
    samples_between: int = SAMPLES,
    plain: int = PLAIN,
    wording: Wording = "usual",
    concept: Callable[[str], Concept] | None = None,
    together: bool = False,
) -> Course:
    """Learn every subject in turn; after each, evaluate all that were learned so far.

    samples: pictures of a subject right after it was learned and at the end; samples_between: otherwise. plain: the
    number of plain prompts at the end, sampled as the last subject is. wording: see `concept_of`. concept: makes the
    concept of a subject of another world. together: learn all subjects at once, with the total rank and steps of
    learning them in turn (the upper bound); all rows of the matrices are then the same.
    """
    base = examiner.base
    museum = Museum(base.fingerprint)
    evaluations: list[list[Evaluation]] = []
    seconds, processor_seconds, began = 0.0, 0.0, time.monotonic()

    def made(subject: str) -> Concept:
        if concept:
            return concept(subject)
        return concept_of(subject, PICTURES, seed=recipe.seed, vectors=VECTORS, wording=wording)

    def extended(museum: Museum, names: Sequence[str], recipe: Recipe) -> Museum:
        nonlocal seconds, processor_seconds
        concepts = [made(name) for name in names]
        begun, worked = time.monotonic(), time.process_time()
        with watched(f"learning {', '.join(f'<{name}>' for name in names)}", recipe.steps) as report:
            exhibits = learn(base, museum, concepts, recipe, report=report)
        seconds += time.monotonic() - begun
        processor_seconds += time.process_time() - worked
        return museum.with_exhibits(*exhibits)

    if together:
        museum = extended(museum, subjects, shared_by(recipe, len(subjects)))
    for name in subjects:
        if not together:
            museum = extended(museum, [name], recipe)
        learned = subjects[: len(evaluations) + 1]
        closely = subjects if name == subjects[-1] else (name,)
        counts = {subject: samples if subject in closely else samples_between for subject in learned}
        evaluations.append(
            [examiner.evaluate(shown_for(museum, subject), subject, count=count) for subject, count in counts.items()]
        )
        evaluated(evaluations[-1])
    kept, pictures = examiner.plain_prompts(shown_for(museum, subjects[-1]), count=plain)
    seconds_evaluating = time.monotonic() - began - seconds
    return Course(museum, evaluations, kept, pictures, seconds, processor_seconds, seconds_evaluating)
