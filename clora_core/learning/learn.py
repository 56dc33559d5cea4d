"""Learn concepts, whatever the model and the recipe.

Every draw depends on the recipe's seed and the step's number alone, so the same inputs give the same exhibits, and a
resumed learning gives what an uninterrupted one would have given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..errors import ConceptError, LearningError
from ..method.objective import diffusion_loss
from ..method.recipe import Recipe
from ..method.step import Past, Setting
from ..model.attach import attached
from ..model.attachment import Attachment, Gate
from ..model.base import Base
from ..model.concept import Concept, mentions, skip_note
from ..model.low_rank import LowRank, Matrix, without
from ..model.moments import Moments, preserved_moments
from ..model.projections import Projection
from ..model.text_states import Report
from ..model.threads import threads_of
from ..museum.museum import CLIP_SKIP, PHRASE, STOPPED, TOGETHER, Exhibit, Museum, gate_of
from .fitting import memory_advice
from .key import learning_key
from .lesson import Lesson
from .loop import Progress, train
from .processes import ALONE, Processes
from .start import Trained, is_known, start
from .state import LearningState
from .stopping import Stopping
from .word_fit import prompts_with, word_fitted


def learn(
    base: Base,
    museum: Museum,
    concepts: Sequence[Concept],
    recipe: Recipe,
    *,
    report: Callable[[Progress[Trained]], None] | None = None,
    resume: LearningState | None = None,
) -> tuple[Exhibit, ...]:
    """The exhibits of the concepts, learned after all that the museum holds: `Learning(…).run(…)`."""
    return Learning(base, museum, tuple(concepts), recipe).run(report=report, resume=resume)


@dataclass(frozen=True, eq=False)
class Learning:
    """Everything that one learning depends on, what is computed from it once, and the learning itself.

    concepts: several are learned at the same time, with alternating batches and shared deltas (joint learning, the
    upper bound of learning one after another). checkpoint: the base's file name, for the exhibits' facts.
    other_checkpoint: allow another checkpoint of the museum's family. Raises for a museum of another base, a word
    that is taken, and a recipe that does not support several concepts.
    With a frozen token, the words of `concepts` stand for known ones.
    """

    base: Base
    museum: Museum
    concepts: tuple[Concept, ...]
    recipe: Recipe
    checkpoint: str = ""
    other_checkpoint: bool = False
    _measured: list[Moments] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.frozen:
            if counted := [concept for concept in self.concepts if concept.vectors > 1]:
                raise ConceptError(
                    f"{counted[0].word} has {counted[0].vectors} vectors of its own to train, but a frozen token has "
                    "those of the words that it stands for. Set vectors to 0, or token to learned."
                )
            object.__setattr__(self, "concepts", tuple(concept.frozen() for concept in self.concepts))
        if self.other_checkpoint:
            self.museum.check_family(self.base.fingerprint)
        else:
            self.museum.check_over(self.base.fingerprint)
        taken = list(self.museum.words)
        for place, (word, concept) in enumerate(zip(self.words, self.concepts, strict=True)):
            if word in taken:
                raise ConceptError(
                    f"The word '{word}' already names exhibit {taken.index(word) + 1} of this museum. "
                    "Choose another word, or remove that exhibit first (C-LoRA Edit Museum, or the command edit)."
                )
            if word in self.words[:place]:
                raise ConceptError(f"Two concepts have the word '{word}'. Give each its own word.")
            for prompt in dict.fromkeys((concept.prompt, *concept.prompts())):
                if not mentions(prompt, word, (*taken, *self.words)):
                    raise ConceptError(
                        f"In '{prompt:.200}', '{word}' is only a part of another known word, so it would not be "
                        f"learned. Write {{word}} apart from it, or name it <{word.strip('<>')}>."
                    )
        phrases = {token.phrase: token.word for token in self.museum.tokens if token.phrase}
        for concept in self.concepts if self.frozen else ():
            if (other := phrases.setdefault(concept.start, concept.word)) != concept.word:
                raise ConceptError(
                    f"{concept.word} would stand for “{concept.start}”, as {other} does. Give it another start."
                )
        if not self.concepts:
            raise ConceptError("There is nothing to learn: no concept was given.")
        several = len(self.concepts) > 1
        if several and self.base.family.reads == "shared" and self.recipe.rank:
            raise LearningError(
                f"In {self.base.family.title}, deltas act at their own word only, so several concepts cannot share "
                "them. Remove the companions, and learn one concept after another."
            )
        if self.base.family.reads == "shared" and self.recipe.rank and self.recipe.applied == "everywhere":
            raise LearningError(
                f"In {self.base.family.title}, text and picture share keys and values, so this recipe would change "
                "every prompt. Choose word-gated-onwards or word-gated, which act at the word only."
            )
        if several and self.recipe.applied != "everywhere":
            raise LearningError(
                f"Deltas that several concepts share cannot act at the word of one, as {self.recipe.method} does. "
                "Choose another recipe, or learn one concept after another."
            )
        if several and (alone := [r.name for r in self.recipe.regularizers if r.one_concept_only]):
            raise LearningError(f"{alone[0]} supports one concept, not several at once. Choose another recipe.")

    @property
    def frozen(self) -> bool:
        """Whether the words stand for known ones."""
        return self.recipe.token == "frozen"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(concept.word for concept in self.concepts)

    @cached_property
    def known_words(self) -> tuple[str, ...]:
        """The words that the model already knows."""
        return tuple(word for word in self.words if is_known(self.base, word))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user, before learning."""
        own, base = self.museum.base, self.base.fingerprint
        other = f"The museum was trained on {own}; the new concepts are trained on {base}."
        known = ((other,) if own != base else ()) + tuple(
            f"'{word}' is already a word of this model. After learning, it means the new concept in every prompt; to "
            f"keep its meaning, choose a word like <my-{word}>."
            for word in self.known_words
        )
        known += tuple(
            f"{concept.word} is frozen: it stands for “{concept.start}”, and the text encoder is not needed during "
            "training. In other programs, write that instead."
            for concept in self.concepts
            if self.frozen
        )
        if self.recipe.rank and self.recipe.applied != "everywhere":
            known += (f"{self.words[-1]} is word-gated: only C-LoRA can show it, Load LoRA cannot.",)
        other_skip = skip_note(self.museum.tokens, self.base.clip_skip)
        return (*known, other_skip) if other_skip else known

    @cached_property
    def key(self) -> str:
        """A fingerprint of everything that decides what is learned."""
        return learning_key(self.base, self.museum, self.concepts, self.recipe)

    @cached_property
    def earlier(self) -> Museum:
        """What the new deltas are learned on top of."""
        return Museum(self.museum.base) if self.recipe.over == "base" else self.museum

    def moments(self, reading: Report | None = None) -> Moments:
        """What the new deltas should not change: measured once, while they are left out."""
        if not self._measured:
            self._measured.append(preserved_moments(self.base, self.earlier.prompts, self.earlier.tokens, reading))
        return self._measured[0]

    @cached_property
    def lessons(self) -> tuple[Lesson, ...]:
        """One for each concept, its pictures encoded."""
        with torch.inference_mode(False):
            return tuple(
                Lesson.prepared(self.base, concept, self.recipe, self.museum.tokens, self.words)
                for concept in self.concepts
            )

    def run(
        self,
        *,
        report: Callable[[Progress[Trained]], None] | None = None,
        reading: Report | None = None,
        resume: LearningState | None = None,
        processes: Processes = ALONE,
    ) -> tuple[Exhibit, ...]:
        """Learn, and return one exhibit per concept, in order; the last one holds the shared deltas.

        The base and the museum do not change. `report` is called after every update and may raise to stop; so is
        `reading`, while prompts are read before the first update and after the last. processes: those that share the
        batches; all of them call this with the same arguments and get the same exhibits. Raises what `loop.train`
        raises.
        """
        base, museum, recipe, key = self.base, self.museum, self.recipe, self.key
        concept = self.concepts[-1]
        with torch.inference_mode(False), torch.enable_grad(), threads_of(base.family):
            lessons = self.lessons
            trained = start(base, self.concepts, recipe, museum)
            if self.frozen:
                tokens = {word: trained.token(word) for word in self.words}
                lessons = tuple(lesson.with_frozen(tokens) for lesson in lessons)
            past = self.earlier.compact()
            if any(regularizer.reads_past and regularizer.weight for regularizer in recipe.regularizers):
                past = {projection: matrix.to(base.device) for projection, matrix in past.items()}
            beneath = past | {place: without(past[place], delta) for place, delta in trained.continued.items()}
            with (
                base.learning(
                    precision=recipe.precision, checkpointing=recipe.checkpointing, words=not self.frozen
                ) as computed_in,
                attached(base, beneath),
                ExitStack() as attachments,
            ):
                gates = (
                    [Gate(word) for word in self.words] if recipe.word_fit else [gate_of(concept.word, recipe.applied)]
                )
                new = [attachments.enter_context(attached(base, trained.deltas, gate)) for gate in gates]
                setting = self._setting(lessons, trained, past, new, reading)
                with setting.as_before():
                    if recipe.word_fit and recipe.rank:
                        self.moments(reading)  # before the training: what cannot be measured fails early
                    terms = {regularizer.name: regularizer.begin(setting) for regularizer in recipe.regularizers}

                def losses_of(number: int) -> dict[str, Tensor]:
                    turn, place = divmod(number, len(lessons))
                    step = lessons[place].step(turn, trained)
                    diffusion = diffusion_loss(step, base.schedule, min_snr_gamma=recipe.min_snr_gamma)
                    return {"diffusion": diffusion, **{name: term(step) for name, term in terms.items()}}

                stopping = self._stopping(lessons, trained) if recipe.stop_when_learned else None
                loss = train(
                    trained,
                    losses_of,
                    recipe,
                    key=key,
                    title=concept.word,
                    saving=memory_advice(recipe, computed_in),
                    device=base.device,
                    computed_in=computed_in,
                    report=report,
                    resume=resume,
                    stopping=stopping,
                    processes=processes,
                )
                more = {} if stopping is None else {STOPPED: stopping.verdict(recipe.steps)}
                return self._exhibits(trained, loss, recipe, more, reading)

    def _setting(
        self,
        lessons: Sequence[Lesson],
        trained: Trained,
        past: Mapping[Projection, Matrix],
        new: Sequence[Attachment],
        reading: Report | None,
    ) -> Setting:
        """What the regularizers get. past: the sum of the earlier deltas. new: the trained ones, as attached. reading:
        see `run`."""
        base, earlier = self.base, self.earlier
        tokens = [trained.token(word) for word in self.words]

        @contextmanager
        def as_before() -> Iterator[None]:
            with ExitStack() as views:
                for attachment in new:
                    views.enter_context(attachment.left_out())
                views.enter_context(attached(base, trained.continued))
                yield

        return Setting(
            base=base,
            past=Past(
                total=past,
                deltas=[exhibit.scaled() for exhibit in earlier.exhibits if not exhibit.gate],
                shared=trained.continued,
                prompts=earlier.prompts,
                tokens=earlier.tokens,
                beside=earlier.prompts_beside(self.concepts[-1]),
            ),
            latents=[bucket.latents[0] for bucket in lessons[-1].buckets],
            as_before=as_before,
            measure_reference_loss=lambda: lessons[-1].reference_loss(*tokens),
            measure_moments=partial(self.moments, reading),
            batch_size=self.recipe.batch_size,
        )

    def _stopping(self, lessons: Sequence[Lesson], trained: Trained) -> Stopping:
        def errors() -> tuple[float, float]:
            """On the pictures that are trained on, and on those that are left out, if there are any."""
            tokens = [trained.token(word) for word in self.words]
            own = [lesson.reference_loss(*tokens) for lesson in lessons]
            out = [lesson.reference_loss(*tokens, bucket=lesson.left_out) for lesson in lessons if lesson.left_out]
            out = out or own
            return sum(own) / len(own), sum(out) / len(out)

        return Stopping(trained, errors, leaves_out=any(lesson.left_out for lesson in lessons))

    def exhibits_at(self, progress: Progress[Trained]) -> tuple[Exhibit, ...]:
        """The exhibits after this update, on the CPU. If the recipe is open-ended, they have this number of steps."""
        recipe, more = self.recipe, {"step": progress.step}
        if recipe.open_ended:
            recipe, more = replace(recipe, steps=progress.step), {}
        return self._exhibits(progress.trained, progress.loss, recipe, more)

    def _exhibits(
        self,
        trained: Trained,
        loss: float,
        recipe: Recipe,
        more: Mapping[str, object],
        reading: Report | None = None,
    ) -> tuple[Exhibit, ...]:
        """While the trained deltas are attached."""
        deltas = trained.increments()
        if recipe.word_fit and deltas:
            tokens, (moments, _) = [trained.token(word) for word in self.words], self.moments()
            prompts = prompts_with(self.concepts, recipe, self.base.family.captions, self.museum.words)
            deltas = word_fitted(self.base, deltas, prompts, tokens, moments, recipe.word_fit, reading)
        *others, last = self.concepts
        described = [self._exhibit(concept, {}, trained, loss, recipe, more) for concept in others]
        return (*described, self._exhibit(last, deltas, trained, loss, recipe, more))

    def _exhibit(
        self,
        concept: Concept,
        deltas: Mapping[Projection, LowRank],
        trained: Trained,
        loss: float,
        recipe: Recipe,
        more: Mapping[str, object],
    ) -> Exhibit:
        checkpoint = " · ".join(filter(None, (self.checkpoint, self.base.fingerprint.digest[:8])))
        skip = self.base.clip_skip
        facts: dict[str, object] = {"pictures": len(concept.pictures), "loss": loss}
        facts |= {"checkpoint": checkpoint, CLIP_SKIP: skip}
        if concept.word in self.known_words:
            facts["known word"] = True
        if self.frozen:
            facts[PHRASE] = concept.start
        if len(self.concepts) > 1:
            facts[TOGETHER] = self.key[:16]
        facts |= more
        token = replace(trained.kept_token(concept.word), clip_skip=skip)
        return Exhibit(token, deltas, recipe, concept.kind, concept.prompt, facts)
