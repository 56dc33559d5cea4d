"""Learn concepts: the one training loop, whatever the model and the recipe.

Every draw depends on the recipe's seed and the step's number alone, so the same inputs give the same exhibits, and a
resumed learning gives what an uninterrupted one would have given.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import ConceptError, LearningError
from ..method.objective import diffusion_loss
from ..method.recipe import Recipe
from ..method.step import Past, Setting
from ..model.attach import attached
from ..model.base import Base
from ..model.concept import Concept
from ..museum.museum import Exhibit, Museum, gate_of
from .key import learning_key
from .lesson import Lesson
from .optimizer import Optimizer
from .start import Trained, start
from .state import LearningState, NotFiniteError, StateError


@dataclass(frozen=True, eq=False)
class Progress:
    """What a `report` callback gets after every update.

    losses: "diffusion" and each regularizer by name, as they entered the sum. trained: the deltas and the words as they
    are now. snapshot: gives a state that learning can resume from.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    trained: Trained
    snapshot: Callable[[], LearningState]

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


def learn(
    base: Base,
    museum: Museum,
    concepts: Sequence[Concept],
    recipe: Recipe,
    *,
    report: Callable[[Progress], None] | None = None,
    resume: LearningState | None = None,
) -> tuple[Exhibit, ...]:
    """The exhibits of the concepts, learned after all that the museum holds: `Learning(…).run(…)`."""
    return Learning(base, museum, tuple(concepts), recipe).run(report=report, resume=resume)


@dataclass(frozen=True, eq=False)
class Learning:
    """One learning: everything that goes into it, what is computed from that once, and the loop itself.

    concepts: what is learned. Several are learned at the same time, batches in turn, with deltas that all of them share
    (joint learning: the upper bound for learning one after another). Raises for a museum over another base, a word that
    is taken, and a recipe that several concepts cannot share.
    """

    base: Base
    museum: Museum
    concepts: tuple[Concept, ...]
    recipe: Recipe

    def __post_init__(self) -> None:
        self.museum.check_over(self.base.fingerprint)
        for place, word in enumerate(self.words):
            if word in self.museum.words:
                raise ConceptError(
                    f"The word '{word}' already names exhibit {self.museum.words.index(word) + 1} of this museum. "
                    "Choose another word, or remove that exhibit first."
                )
            if word in self.words[:place]:
                raise ConceptError(f"Two concepts have the word '{word}'. Give each its own word.")
        if not self.concepts:
            raise ConceptError("There is nothing to learn: no concept was given.")
        several = len(self.concepts) > 1
        if several and self.recipe.applied != "everywhere":
            raise LearningError(
                "Deltas that several concepts share cannot act at the word of one. Choose another recipe."
            )
        if several and (alone := [r.name for r in self.recipe.regularizers if r.one_concept_only]):
            raise LearningError(f"{alone[0]} knows one concept, not several at once. Choose another recipe.")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(concept.word for concept in self.concepts)

    @cached_property
    def key(self) -> str:
        """A fingerprint of everything that decides what is learned."""
        return learning_key(self.base, self.museum, self.concepts, self.recipe)

    @cached_property
    def lessons(self) -> tuple[Lesson, ...]:
        """One for each concept, its pictures encoded."""
        with torch.inference_mode(False):
            return tuple(
                Lesson.prepared(self.base, concept, self.recipe, self.museum.tokens, self.words)
                for concept in self.concepts
            )

    def run(
        self, *, report: Callable[[Progress], None] | None = None, resume: LearningState | None = None
    ) -> tuple[Exhibit, ...]:
        """Learn. One exhibit for each concept, in order; the last one holds the deltas that all share.

        Neither the base nor the museum is changed. `report` hears of every update and may raise to stop; its exception
        passes through. Raises NotFiniteError, with the last good state in it, when the loss or its gradient is no
        longer finite, and StateError for a `resume` that is no state of this learning.
        """
        base, museum, recipe, key = self.base, self.museum, self.recipe, self.key
        concept = self.concepts[-1]
        earlier = Museum(museum.base) if recipe.over == "base" else museum
        with torch.inference_mode(False), torch.enable_grad():
            lessons = self.lessons
            trained = start(base, self.concepts, recipe, museum)
            past = {projection: moved.to(base.device) for projection, moved in earlier.dense().items()}
            beneath = past | {place: past[place] - delta.dense() for place, delta in trained.continued.items()}
            with (
                base.learning(precision=recipe.precision, checkpointing=recipe.checkpointing) as computed_in,
                attached(base, beneath),
                attached(base, trained.deltas, gate_of(concept.word, recipe.applied)) as new,
            ):
                optimizer = Optimizer(trained, recipe, base.device, computed_in)
                first_words = [trained.token(word) for word in self.words]

                @contextmanager
                def as_before() -> Iterator[None]:
                    with new.left_out(), attached(base, trained.continued):
                        yield

                setting = Setting(
                    base=base,
                    past=Past(
                        dense=past,
                        deltas=[exhibit.scaled_deltas for exhibit in earlier.exhibits if not exhibit.gate],
                        shared=trained.continued,
                        prompts=earlier.prompts,
                        words=earlier.tokens,
                        beside=earlier.prompts_beside(concept),
                    ),
                    latents=lessons[-1].latents[0],
                    as_before=as_before,
                    measure_reference_loss=lambda: lessons[-1].reference_loss(*first_words),
                )
                with as_before():
                    terms = {regularizer.name: regularizer.begin(setting) for regularizer in recipe.regularizers}
                book = _Book(key, trained, optimizer, resume)
                for index in range(len(book.losses), recipe.steps):
                    losses = dict.fromkeys(("diffusion", *terms), 0.0)
                    for part in range(recipe.accumulation):
                        turn, place = divmod(index * recipe.accumulation + part, len(lessons))
                        step = lessons[place].step(turn, trained)
                        values = {"diffusion": diffusion_loss(step, base.schedule, min_snr_gamma=recipe.min_snr_gamma)}
                        values |= {name: term(step) for name, term in terms.items()}
                        optimizer.gather(torch.stack(list(values.values())).sum())
                        for name, value in values.items():
                            losses[name] += value.item() / recipe.accumulation
                    if not math.isfinite(sum(losses.values())) or not optimizer.update(index):
                        raise NotFiniteError(_not_finite(concept.word, index, losses, computed_in), book.state())
                    trained.settle()
                    book.losses.append(sum(losses.values()))
                    if report:
                        report(Progress(index + 1, recipe.steps, losses, trained, book.state))
            return tuple(self._exhibit(each, trained, book.losses[-1]) for each in self.concepts)

    def _exhibit(self, concept: Concept, trained: Trained, loss: float) -> Exhibit:
        facts = {"pictures": len(concept.pictures), "loss": loss}
        deltas = trained.increments() if concept is self.concepts[-1] else {}
        return Exhibit(trained.kept_token(concept.word), deltas, self.recipe, concept.kind, concept.prompt, facts)


class _Book:
    """Where a learning stands: what `LearningState` is written from and read into."""

    def __init__(self, key: str, trained: Trained, optimizer: Optimizer, resume: LearningState | None) -> None:
        self.key, self.trained, self.optimizer = key, trained, optimizer
        self.losses: list[float] = []
        if resume is not None:
            self._open_at(resume)

    def state(self) -> LearningState:
        tensors = {f"trained.{name}": value.detach().cpu().clone() for name, value in self.trained.parameters().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.memory().items()}
        return LearningState(self.key, len(self.losses), tensors, tuple(self.losses))

    @torch.no_grad()
    def _open_at(self, state: LearningState) -> None:
        if state.key != self.key:
            raise StateError("This saved state belongs to another learning (other pictures, museum or numbers).")
        self._check(state)
        for name, value in self.trained.parameters().items():
            value.copy_(state.tensors[f"trained.{name}"])
        prefix = "optimizer."
        memory = {name.removeprefix(prefix): v for name, v in state.tensors.items() if name.startswith(prefix)}
        self.optimizer.remember(memory)
        self.losses = list(state.losses)

    def _check(self, state: LearningState) -> None:
        """Raise StateError unless the state holds all that is trained, and nothing else than this learning knows."""
        trained = {f"trained.{name}": value.shape for name, value in self.trained.parameters().items()}
        shapes = trained | {f"optimizer.{name}": shape for name, shape in self.optimizer.shapes().items()}
        if state.step != len(state.losses):
            raise StateError(f"This saved state is of step {state.step}, but it has {len(state.losses)} losses.")
        if missing := trained.keys() - state.tensors.keys():
            raise StateError(f"This saved state is damaged: it has no '{min(missing)}'.")
        for name, value in state.tensors.items():
            if value.shape != shapes.get(name) or value.dtype != torch.float32 or not value.isfinite().all():
                raise StateError(f"This saved state is damaged: '{name:.100}' is not what this learning has there.")


def _not_finite(word: str, index: int, losses: Mapping[str, float], computed_in: torch.dtype) -> str:
    broken = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
    what = f"the loss ({broken})" if broken else "the gradient"
    exact = "" if computed_in == torch.float32 else "precision fp32 over weights in fp32, or "
    return (
        f"Learning '{word}' stopped at step {index + 1}: {what} is no finite number. Try {exact}a lower learning rate."
    )
