"""Can `preservation` learn in half of its time, or better? Ways to train it, on ten characters in a row.

    python -m benchmarks.time_to_learn

Ten random characters that share traits, none of them a built-in one, are learned in a row on the built-in model, each
way with one seed, and found among each other, also in eight kinds of edited prompts. Prodigy needs the package
`prodigyopt`. Writes `benchmarks/results/time_to_learn.json` after every way, which the same command goes on from.
"""

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from clora_core.bench.measuring import machine
from clora_core.bench.metrics import metrics
from clora_core.bench.runs import read_json, write_json
from clora_core.commands.progress import watched_bar
from clora_core.learning import learn
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import Trained
from clora_core.method.objective import diffusion_loss
from clora_core.method.recipe import Recipe
from clora_core.method.step import Step
from clora_core.model.base import Schedule
from clora_core.model.concept import Concept
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter import course, exam, subjects
from clora_core.starter.course import VECTORS, starter_recipe, take_course
from clora_core.starter.judge import load_judge
from clora_core.starter.layout import vocabulary

from .edited_prompts import characters

RESULT = Path(__file__).parent / "results/time_to_learn.json"
EDITS, COUNTS = 12, {"samples": 16, "samples_between": 2, "plain": 96}
REPORTED = ("learned", "kept", "traits", "edited_all", "edits", "base_damage", "late_norm", "processor_seconds")
HALF = 150
Way = tuple[Recipe, Callable[[], AbstractContextManager[Any]]]


def debiased(step: Step, schedule: Schedule, *, min_snr_gamma: float = 0.0) -> Tensor:
    """The error of the noise, over √SNR (Yu et al. 2023, arXiv:2310.08442). For velocities, √SNR/(SNR + 1) times
    theirs, since their error is that of the noise over α, and α² = SNR/(SNR + 1)."""
    error = (step.prediction.float() - step.target.float()).square().flatten(1).mean(1)
    snr = schedule.snr(step.timesteps)
    return (error * snr.sqrt() / (snr + 1)).mean()


@contextlib.contextmanager
def middle_timesteps() -> Iterator[None]:
    """Timesteps whose share of the schedule is logit-normal (Esser et al. 2024, arXiv:2403.03206)."""
    predicted, step = Lesson._predicted, Lesson.step

    def moved(self: Lesson, number: int, latents: Tensor, noise: Tensor, times: Tensor, *more: Any) -> Step:
        count = len(self.base.schedule.levels)
        shares = torch.special.ndtri((times + 0.5) / count).sigmoid()
        return predicted(self, number, latents, noise, (shares * count).long().clamp(0, count - 1), *more)

    def trained_with(self: Lesson, number: int, trained: Trained) -> Step:
        with mock.patch.object(Lesson, "_predicted", moved):
            return step(self, number, trained)

    with mock.patch.object(Lesson, "step", trained_with):
        yield


@contextlib.contextmanager
def larger_batches_early() -> Iterator[None]:
    """Of 32 pictures in the first third, of 8 after it: as many as with 16 all the time."""
    step = Lesson.step

    def sized(self: Lesson, number: int, trained: Trained) -> Step:
        recipe = dataclasses.replace(self.recipe, batch_size=32 if number < self.recipe.steps / 3 else 8)
        return step(dataclasses.replace(self, recipe=recipe), number, trained)

    with mock.patch.object(Lesson, "step", sized):
        yield


class Prodigies:
    """Two Prodigys, one for the deltas and one for the word, in the place of AdamW."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        from prodigyopt import Prodigy  # type: ignore[import-not-found]

        settings = {"lr": 1.0, "use_bias_correction": True, "safeguard_warmup": True, "weight_decay": 0.0}
        self.each = [Prodigy(group["params"], **settings) for group in groups]
        self.param_groups = [group for one in self.each for group in one.param_groups]

    def step(self) -> None:
        for one in self.each:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for one in self.each:
            one.zero_grad(set_to_none=set_to_none)


@contextlib.contextmanager
def warm_start() -> Iterator[None]:
    """Words start from the two known words that, in their place, let the model predict the pictures best."""

    def started(subject: str, count: int, **more: Any) -> Concept:
        concept = exam.concept_of(subject, count, **more)
        lesson, chosen = Lesson.prepared(base, concept, starter_recipe("preservation")), ""
        for _ in range(VECTORS):
            phrases = [f"{chosen} {word}".strip() for word in vocabulary()[3:]]
            chosen = min(phrases, key=lambda phrase: error(lesson, phrase))
        return dataclasses.replace(concept, start=chosen)

    def error(lesson: Lesson, phrase: str) -> float:
        states = base.encode_prompts([lesson.concept.prompt.replace(lesson.concept.word, phrase)], [])
        predictions, targets = lesson.reference(lambda chosen: states[torch.zeros_like(chosen)])
        return (predictions - targets).square().mean().item()

    base = open_base("starter")
    with mock.patch.object(course, "concept_of", started):
        yield


@contextlib.contextmanager
def described() -> Iterator[None]:
    """Words start from two known words that a user would name: the color and the kind, as in "purple person"."""

    def started(subject: str, count: int, **more: Any) -> Concept:
        traits = subjects.ALL_IDENTITIES[subject]
        return dataclasses.replace(exam.concept_of(subject, count, **more), start=f"{traits['skin']} {traits['kind']}")

    with mock.patch.object(course, "concept_of", started):
        yield


@contextlib.contextmanager
def word_alone() -> Iterator[None]:
    """A quarter of the captions are the word alone."""

    def captioned(subject: str, count: int, **more: Any) -> Concept:
        concept = exam.concept_of(subject, count, **more)
        return dataclasses.replace(concept, captions=("\n".join([concept.prompt] * 3 + ["{word}"]),) * count)

    with mock.patch.object(course, "concept_of", captioned):
        yield


def ways() -> Mapping[str, Way]:
    """Name → its recipe, and what else is different."""
    full, half = starter_recipe("preservation"), starter_recipe("preservation", steps=HALF)
    twice = {"learning_rate": 2 * half.learning_rate, "token_learning_rate": 2 * half.token_learning_rate}
    same, small = contextlib.nullcontext, dataclasses.replace(full, batch_size=8)
    return {
        "300 steps (the default)": (full, same),
        "150 steps": (half, same),
        "150 steps, min-SNR with γ = 5": (dataclasses.replace(half, min_snr_gamma=5.0), same),
        "150 steps, debiased loss": (half, lambda: mock.patch.object(learn, diffusion_loss.__name__, debiased)),
        "300 steps, batches of 8 pictures": (small, same),
        "600 steps, batches of 8 pictures": (starter_recipe("preservation", steps=600, batch_size=8), same),
        "600 steps, batches of 4 pictures": (starter_recipe("preservation", steps=600, batch_size=4), same),
        "300 steps, a quarter of the captions the word alone": (
            dataclasses.replace(full, caption_lines=True),
            word_alone,
        ),
        "150 steps, larger batches early": (half, larger_batches_early),
        "150 steps, Prodigy": (half, lambda: mock.patch("torch.optim.AdamW", Prodigies)),
        "150 steps, the word from known ones": (half, warm_start),
        "150 steps, the word from two words that describe it": (half, described),
        "300 steps, the word from two words that describe it": (full, described),
        "300 steps, batches of 8 pictures, the word from two words that describe it": (small, described),
        "150 steps, middle timesteps": (half, middle_timesteps),
        "150 steps, twice the learning rates": (dataclasses.replace(half, **twice), same),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=ways(), default=list(ways()), help="those to measure (all)")
    arguments = parser.parse_args()
    among = characters(10, "time to learn")
    examiner = exam.Examiner(open_base("starter"), load_judge())
    report = read_json(RESULT) if RESULT.exists() else {"machine": machine(examiner.base.device), **COUNTS, "ways": {}}
    with mock.patch.dict(subjects.ALL_IDENTITIES, among), mock.patch.object(exam, "candidates", lambda name: among):
        before = examiner.plain_prompts(Museum(examiner.base.fingerprint), count=COUNTS["plain"])
        for name in arguments.ways:
            if name in report["ways"]:
                continue
            recipe, changed = ways()[name]
            with changed():
                taken = take_course(examiner, list(among), recipe, watched=watched_bar, **COUNTS)
            found = metrics(examiner, list(among), taken, before, edits=EDITS)
            row = {measure: found[measure] for measure in REPORTED}
            print(name, json.dumps(row), flush=True)
            report["ways"][name] = row
            write_json(RESULT, report)


if __name__ == "__main__":
    main()
