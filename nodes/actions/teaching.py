"""What Train Step does: the engine's `learn`, with progress on the node and results stored on disk."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...clora_core.errors import CLoRAError
from ...clora_core.learning.effect import effect, passes
from ...clora_core.learning.fitting import computed, described, fitted, lighter_after
from ...clora_core.learning.learn import Learning
from ...clora_core.learning.loop import Progress
from ...clora_core.learning.state import SAVE_EVERY, LearningState, OutOfMemoryError, StateError
from ...clora_core.method.draft import Draft
from ...clora_core.method.recipe import Recipe
from ...clora_core.model.concept import Concept, largest
from ...clora_core.museum.editing import dated
from ...clora_core.museum.museum import STOPPED, Exhibit, Museum, viewing
from ...clora_core.pictures import to_picture
from ...clora_core.report.before_after import MOST, compared, sampled, sampled_before, sampled_now
from ...clora_core.texts import counted
from ..host.base import VAE, HostBase
from ..host.differentiable import ordinary_tensors
from ..host.folders import results_folder
from ..host.identity import models_digest
from ..host.memory import device_of, memory_note, needed_bytes
from ..host.model import ModelPatcher
from ..host.panels import Panel, state_under
from ..host.progress import NodeProgress, check_interrupted, say_without_panel
from ..host.view import base_beneath, view, viewed
from ..host.words import CLIP
from ..log import log
from .clock import Clock, costs
from .diary import Diary, Status
from .inputs import ConceptInputs
from .pictures import from_images, in_8_bits, to_images
from .results import Result, Store

PREVIEW_AREA_PX, PREVIEWS_MOST = 512 * 512, 4  # the final pictures fill at most this area
NOT_KEPT = "another node's change of this model cannot be read, so nothing is stored: running this step again retrains"
ENLARGED = 2.0  # times its height: a picture that is enlarged more is mentioned
LABELS = {"self_regularization": "forgetting"}  # display names for parts of the loss


def train_step(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    inputs: Sequence[ConceptInputs],
    recipe: Recipe | Draft,
    museum: Museum | None = None,
    preview_every: int = 0,
    keep_every: int = 0,
    checkpoint: str = "",
    other_checkpoint: bool = False,
) -> tuple[ModelPatcher, CLIP, Museum, dict[str, list[float]], Tensor]:
    """The outputs of a Train Step: model and CLIP with the new museum, the museum, its losses, pictures.

    inputs: the companions, then the step's own concept. recipe: for one concept; its open numbers are fitted to model
    and device. museum: the earlier concepts; None uses the museum that the model shows, or a new one. If this same
    step has already taught it these concepts, it stays as it is. keep_every: see `Teaching`. checkpoint,
    other_checkpoint: see `Learning`.
    """
    with ordinary_tensors():
        museum = museum or viewed(model)
        bare_model, bare_clip = base_beneath(model, clip, museum)
        base = HostBase(bare_model, bare_clip, vae)
        museum = museum or Museum(base.fingerprint)
        concepts = tuple(_concept(entry, base) for entry in inputs)
        earlier = _before(museum, [concept.word for concept in concepts])
        known = earlier is not museum  # it holds all of these words
        size, draft, note = largest(concepts), Draft.of(recipe), ""
        fitting = fitted(
            draft,
            base.family,
            device_of(base),
            lambda choice: needed_bytes(base, choice, earlier, *size),
            concepts,
        )
        models = models_digest(bare_model, bare_clip, vae)
        with _store(NOT_KEPT if models is None else "") as store:
            while True:
                learning = Learning(base, earlier, concepts, fitting, checkpoint, other_checkpoint)
                key = hashlib.sha256(f"{learning.key} {models}".encode()).hexdigest()
                diary = _diary(learning, key, preview_every, resumable=not store.not_kept)
                teaching = Teaching(base, learning, store, key, diary, preview_every, keep_every * len(inputs), note)
                if known and not teaching.has_taught(museum):
                    dataclasses.replace(learning, museum=museum)  # raises an error: the word is taken
                try:
                    result = teaching.result()
                    break
                except OutOfMemoryError as error:
                    less = lighter_after(error, draft, fitting)
                    note = f"out of memory at step {error.state.step + 1} with {computed(fitting)}"
                    fitting = less
        if store.not_kept:
            say_without_panel(store.not_kept)
            diary.close("learned", diary.effect, " · ".join(filter(None, (diary.note, store.not_kept))))
    new = museum if known else earlier.with_exhibits(*result.exhibits)
    return *view(bare_model, bare_clip, new), new, {"loss": list(result.losses)}, to_images(result.pictures)


@dataclass(frozen=True, eq=False)
class Teaching:
    """A learning that is shown on its node and stored on disk.

    key: of everything that affects the result, except for the number of steps where a longer training begins with a
    shorter one. preview_every, keep_every: steps between previews, and between states that are kept for trainings with
    other numbers of steps; 0 for none. They do not affect the result. note: what to say besides.
    """

    base: HostBase
    learning: Learning
    store: Store
    key: str
    diary: Diary
    preview_every: int
    keep_every: int
    note: str

    @property
    def result_key(self) -> str:
        return f"{self.key}-{self.learning.recipe.steps}"

    @cached_property
    def stored(self) -> Result | None:
        """The result in the store."""
        return self.store.result(self.result_key)

    def has_taught(self, museum: Museum) -> bool:
        """Whether the museum begins with the result in the store."""
        result = self.stored
        return result is not None and museum.begins_with(self.learning.museum.with_exhibits(*result.exhibits))

    def result(self) -> Result:
        """The result in the store, or else of training, which resumes from a state in the store."""
        learning, diary = self.learning, self.diary
        if result := self.stored:
            NodeProgress().update(learning.recipe.steps, learning.recipe.steps)
            say_without_panel(f"{diary.words} was learned before with the same pictures and settings")
            diary.replay(result.diary)
            return result
        try:
            unlabeled, losses = self._learned()
            exhibits = tuple(dated(*pair) for pair in zip(unlabeled, learning.concepts, strict=True))
            pictures = self._drawn(exhibits)
        except BaseException as error:
            diary.close("stopped", note=str(error))
            raise
        result = Result(exhibits, losses, in_8_bits(pictures), diary.state())
        self.store.keep(self.result_key, learning.museum.base, result, state_key=self.key)
        return result

    def _drawn(self, exhibits: Sequence[Exhibit]) -> Tensor:
        """The final pictures, after which the diary is closed. If drawing or measuring fails, for example for lack of
        memory, the exhibits are kept all the same; pictures that are missing are gray."""
        learning, diary = self.learning, self.diary
        notes = [self._settings(), str(exhibits[-1].facts.get(STOPPED, ""))]
        pictures, measured = torch.zeros(1, 3, *learning.concepts[-1].size), None
        try:
            pictures = _pictures(learning, exhibits, _advance(diary, "drawing"))
            diary.paste(pictures[0])
            if self.preview_every:
                diary.compare(compared(learning, exhibits, _advance(diary, "comparing")))
            measured = effect(learning, exhibits[-1], _advance(diary, "measuring"))
        except (RuntimeError, OSError, CLoRAError) as error:
            log.warning("C-LoRA: what was learned could not be drawn or measured.", exc_info=error)
            notes.append(f"learned, but it could not be drawn or measured: {error}")
        diary.close("learned", measured, " · ".join(filter(None, notes)))
        return pictures

    def _learned(self) -> tuple[tuple[Exhibit, ...], tuple[float, ...]]:
        """The exhibits, and the loss of every step. The state is stored however training stops."""
        learning, store, key, diary = self.learning, self.store, self.key, self.diary
        concepts, recipe = learning.concepts, learning.recipe
        node = NodeProgress()
        resume = store.furthest_state(key, recipe.steps)
        losses = list(resume.losses) if resume else []
        last: Progress | None = None
        self._begin(resume)

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            losses.append(progress.loss)
            ends = progress.step == progress.steps
            if recipe.open_ended and (ends or (self.keep_every and progress.step % self.keep_every == 0)):
                store.keep_state_along(key, progress.snapshot())
            elif progress.step % SAVE_EVERY == 0 or ends:
                store.keep_state(key, progress.snapshot())
            diary.write(progress)
            if progress.step % SAVE_EVERY == 0:
                diary.keep()
            say_without_panel(progress_line(progress, diary.seconds_left))
            picture = None
            if self.preview_every and progress.step % self.preview_every == 0:
                token = progress.trained.token(concepts[-1].word)
                pixels = sampled_now(learning, token, lambda done, of: check_interrupted())
                diary.paste(pixels)
                picture = to_picture(pixels)
            node.update(progress.step, progress.steps, picture)

        def reading(done: int, of: int) -> None:
            check_interrupted()
            diary.advance("reading" if done < of else "learning", done, of)

        try:
            return learning.run(report=report, reading=reading, resume=resume), tuple(losses)
        except StateError as error:
            if resume is None:
                raise
            store.refuse_state(key, resume, error)
        except BaseException:
            if last:
                store.keep_state(key, last.snapshot())
            raise
        return self._learned()

    def _begin(self, resume: LearningState | None) -> None:
        """Say what is taught and how, and open the diary, with a real picture and one of the untrained model."""
        learning, diary = self.learning, self.diary
        note = self._described()
        log.info("C-LoRA: %s", note)
        say_without_panel(note if resume is None else f"resuming from step {resume.step} · {note}")
        diary.begin(resume.step if resume else 0, note, state_under(self.key))
        if not diary.before:
            diary.paste_before("real", learning.concepts[-1].pictures[0].read())
            if self.preview_every and resume is None:
                diary.paste_before("untrained", sampled_before(learning))

    def _settings(self) -> str:
        """The number of pictures, and what the recipe and the device come to."""
        learning = self.learning
        pictures = counted(sum(len(concept.pictures) for concept in learning.concepts), "picture")
        return f"{pictures} · {described(learning.recipe, self.base.family, device_of(self.base))}"

    def _described(self) -> str:
        """What is taught and how, in one line."""
        base, learning, recipe = self.base, self.learning, self.learning.recipe
        pictures = [picture for concept in learning.concepts for picture in concept.pictures]
        memory = memory_note(base, recipe, learning.museum, *largest(learning.concepts))
        note = f"teaching {self.diary.words} with {self._settings()} · {memory}"
        if (sizes := len({picture.size for picture in pictures})) > 1:
            note += f" · {sizes} sizes"
        if enlarged := sum(picture.size[0] > ENLARGED * picture.original[0] for picture in pictures):
            note += f" · {enlarged} much smaller than the others, enlarged"
        if not recipe.open_ended:
            note += " · if you change steps later, training starts over" + ", and keep_every keeps nothing" * (
                self.keep_every > 0
            )
        return " · ".join(filter(None, [self.note, note, *learning.notes, self.store.not_kept]))


def _before(museum: Museum, words: Sequence[str]) -> Museum:
    """The museum as it was before these words were learned, if it holds them; else the museum itself."""
    place = museum.words.index(words[0]) if words[0] in museum.words else len(museum.words)
    if museum.words[place : place + len(words)] != tuple(words):
        return museum
    return dataclasses.replace(museum, exhibits=museum.exhibits[:place])


def _diary(learning: Learning, key: str, preview_every: int, *, resumable: bool) -> Diary:
    panel, recipe = Panel(), learning.recipe
    of_a_sheet = 2 * min(len(learning.museum.exhibits) + 1, MOST)
    return Diary(
        ", ".join(learning.words),
        recipe.steps,
        panel.send,
        keep=panel.keep,
        key=key,
        resumable=resumable,
        preview_every=preview_every,
        pictures=len(_prompts(learning)) + of_a_sheet * bool(preview_every),
        clock=Clock(costs(recipe.batch_size * recipe.accumulation, passes(learning.museum))),
    )


def _advance(diary: Diary, status: Status) -> Callable[[int, int], None]:
    """The callback of the work after training. Raises ComfyUI's interrupt after Cancel."""
    node = NodeProgress()

    def report(done: int, of: int) -> None:
        diary.advance(status, done, of)
        node.update(done, of)

    return report


@contextmanager
def _store(not_kept: str) -> Iterator[Store]:
    """The store on disk; or, if there is a reason not to store results, a temporary one for this step."""
    store = Store(results_folder())
    if reason := not_kept or store.refusal:
        with TemporaryDirectory() as folder:
            yield Store(Path(folder, "results"), not_kept=reason)
    else:
        yield store


def _pictures(learning: Learning, exhibits: Sequence[Exhibit], report: Callable[[int, int], None]) -> Tensor:
    """Samples of the new words, the last concept's first, (n, 3, height, width) in [-1, 1]."""
    museum = learning.museum.with_exhibits(*exhibits)
    with viewing(learning.base, museum.compact(), museum.gated):
        return sampled(learning, _prompts(learning), museum.tokens, report)


def _prompts(learning: Learning) -> list[str]:
    """Those of the final pictures."""
    concepts = learning.concepts
    count = min(PREVIEWS_MOST, max(1, PREVIEW_AREA_PX // math.prod(concepts[-1].size)))
    return [concept.prompt for concept in reversed(concepts)] * max(1, count // len(concepts))


def progress_line(progress: Progress, seconds_left: float | None) -> str:
    """ "step 120/400 · loss 0.081 · forgetting 0.002 · 41 s left" """
    parts = [f"step {progress.step}/{progress.steps}", f"loss {progress.loss:.3f}"]
    parts += [
        f"{LABELS.get(name, name.replace('_', ' '))} {value:.3f}"
        for name, value in progress.losses.items()
        if name != "diffusion"
    ]
    if seconds_left is not None:
        seconds = round(seconds_left)
        parts.append(f"{seconds} s left" if seconds < 120 else f"{seconds // 60} min left")
    return " · ".join(parts)


def _concept(inputs: ConceptInputs, base: HostBase) -> Concept:
    """The concept with its pictures and captions. Raises an error for pictures that do not fit the model."""
    pictures = from_images(inputs.images, inputs.masks, multiple=base.family.side_px, resolution_px=base.resolution_px)
    if len(inputs.captions) == 1 and len(pictures) > 1:  # one text with a line per picture
        captions = [line.strip() for line in inputs.captions[0].splitlines() if line.strip()]
    else:
        captions = [caption.strip() for caption in inputs.captions]
    return dataclasses.replace(inputs.concept, pictures=pictures, captions=tuple(captions) if any(captions) else ())
