"""A training of `learn`: its options and concepts, what is learned, and how that reaches the museum's file."""

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConceptError, MuseumError
from ..learning.fitting import computed, described, fitted, lighter_after
from ..learning.learn import Learning
from ..learning.processes import Processes
from ..learning.state import OutOfMemoryError, load_state
from ..method.draft import Draft
from ..method.recipe import Recipe
from ..model.concept import Concept, largest
from ..museum.editing import dated
from ..museum.file import append_exhibits, load_museum, read_header, save_museum
from ..museum.file.files import identity, refused_by_the_system
from ..museum.museum import Exhibit, Museum
from ..texts import counted
from .along import Along
from .model import probed, tell_of_baseline, training_bytes
from .progress import Say, reading_bar
from .resuming import run_resumably, state_path

if TYPE_CHECKING:  # diffusers is optional: commands that open no model do without it
    from ..over_diffusers.base import DiffusersBase


@dataclass(frozen=True, eq=False)
class Training:
    """options: of the command, or of an entry of its list. concepts: learned together; one, unless --also adds some."""

    options: argparse.Namespace
    draft: Draft
    concepts: tuple[Concept, ...]

    def learning(self, base: "DiffusersBase", museum: Museum) -> Learning:
        """The learning of the concepts after this museum, with all numbers of its recipe."""
        size = largest(self.concepts)

        def needed(choice: Recipe) -> int:
            return training_bytes(base, choice, museum, size)

        recipe = fitted(self.draft, base.family, probed(base.device), needed, self.concepts)
        options = self.options
        return Learning(base, museum, self.concepts, recipe, Path(options.base).name, options.other_checkpoint)

    def state(self, learning: Learning) -> Path:
        """Where it is kept while it is unfinished."""
        return state_path(self.options.museum, self.options.word, learning.key)

    def finished(self) -> Path:
        """Where the state of the last finished training is kept, to continue it."""
        return self.options.museum.with_name(f"{self.options.museum.stem}.finished")

    def along(self, learning: Learning, say: Say) -> Along:
        """What is written beside the museum on the way."""
        options = self.options
        return Along(learning, options.museum, options.keep_every, options.preview_every, say)

    def run(
        self, learning: Learning, base: "DiffusersBase", processes: Processes, say: Say, *, shown: bool = True
    ) -> tuple[Learning, tuple[Exhibit, ...]]:
        """Say what is learned and how, and learn it; if memory runs out, in a way that needs less, which is returned.

        shown: whether the first process has a progress bar.
        """
        recipe, state, along = learning.recipe, self.state(learning), self.along(learning, say)
        pictures = (f"{concept.word} from {counted(len(concept.pictures), 'picture')}" for concept in self.concepts)
        tell_of_baseline(recipe.method, say)
        say(f"Learning {' and '.join(pictures)} on {base.fingerprint}, recipe {recipe.method}.")
        say(f"{described(recipe, base.family, probed(base.device))}.")
        for note in learning.notes:
            say(f"Note: {note}")
        _check_room(self.options.museum, base, recipe)
        if processes.first:
            _take_up(self.finished(), state, learning.key, recipe.steps)
            if not state.exists():
                along.begin()
        shown = shown and processes.first
        try:
            with reading_bar("reading prompts", shown=shown) as reading:
                exhibits = run_resumably(
                    partial(learning.run, processes=processes),
                    state,
                    say,
                    recipe.steps,
                    title=self.options.title or self.options.word,
                    along=along.step,
                    reading=reading,
                    processes=processes,
                    shown=shown,
                )
        except OutOfMemoryError as error:
            if processes.count > 1:
                raise
            less = lighter_after(error, self.draft, recipe)
            say(f"Out of memory at step {error.state.step + 1} with {computed(recipe)}. It goes on with less:")
            return self.run(dataclasses.replace(learning, recipe=less), base, processes, say, shown=shown)
        new = (dated(exhibit, concept) for exhibit, concept in zip(exhibits, self.concepts, strict=True))
        return learning, tuple(new)


def museum_in(path: Path, base: "DiffusersBase") -> Museum:
    """The museum in the file; an empty one if there is no file."""
    return load_museum(path) if path.exists() else Museum(base.fingerprint)


def learn_next(training: Training, base: "DiffusersBase", processes: Processes, say: Say) -> None:
    """Learn it after all that the museum's file holds, and add it to the file."""
    options = training.options
    processes.wait()  # until the first one has written the museum
    read = identity(options.museum) if options.museum.exists() else None
    museum = museum_in(options.museum, base)
    earlier = _before(museum, [concept.word for concept in training.concepts]) if options.replace else museum
    learning, new = training.run(training.learning(base, earlier), base, processes, say)
    if not processes.first:
        return
    if len(earlier.exhibits) < len(museum.exhibits):
        dtype, whole = read_header(options.museum).dtype, earlier.with_exhibits(*new)
        path = save_museum(whole, options.museum, overwrite=True, dtype=dtype, read=read)
        say(f"{path} now holds: {', '.join(whole.words)}")
    else:
        add_to_file(Museum(museum.base, new), options.museum, say)
    state = training.state(learning)
    if learning.recipe.open_ended and not options.list and state.exists():
        os.replace(state, training.finished())
        say(
            "To train further: the same command with more --steps and --replace. It continues from "
            f"{training.finished()}."
        )
    else:
        state.unlink(missing_ok=True)
    training.along(learning, say).end(new)


def _before(museum: Museum, words: Sequence[str]) -> Museum:
    """The museum without these words, which must be its last ones. Raises ConceptError if others follow them."""
    rest = tuple(exhibit for exhibit in museum.exhibits if exhibit.word not in words)
    if rest != museum.exhibits[: len(rest)]:
        raise ConceptError(
            f"{museum.words[-1]} was learned after {', '.join(words)}, so --replace cannot learn that again: only the "
            "last word can be replaced. Remove the later ones first (command edit), or choose another word."
        )
    return dataclasses.replace(museum, exhibits=rest)


def _take_up(finished: Path, state: Path, key: str, steps: int) -> None:
    """Continue from the last finished training, if it is the beginning of this one."""
    if state.exists() or not finished.exists():
        return
    with suppress(MuseumError):  # a damaged one is useless
        begun = load_state(finished)
        if begun.key == key and begun.step <= steps:
            os.replace(finished, state)


def _check_room(path: Path, base: "DiffusersBase", recipe: Recipe) -> None:
    """Raise MuseumError if the disk has no room for what learning writes: the museum and the state, both twice."""
    trained = sum(4 * recipe.rank * sum(projection.shape) for projection in base.slots)
    existing = path.stat().st_size if path.exists() else 0
    needed, free = 2 * (existing + 4 * trained), shutil.disk_usage(path.parent).free
    if free < needed:
        raise MuseumError(
            f"Learning needs up to {needed / 2**20:.0f} MiB in '{path.parent}', but only {free / 2**20:.0f} MiB are "
            "free. Make room, or choose another folder for the museum."
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.truncate(needed // 2)  # takes no room, but is subject to the system's limit on file sizes
    except OSError as error:
        raise MuseumError(
            f"Learning needs files of up to {needed / 2**21:.1f} MiB, which '{path.parent}' does not accept: "
            f"{error.strerror}. Choose another folder for the museum."
        ) from error


def add_to_file(new: Museum, path: Path, say: Say) -> None:
    """Add the exhibits to the museum's file; if the system refuses, they are saved elsewhere, with a message."""
    try:
        append_exhibits(new.exhibits, path, base=new.base)
    except MuseumError as error:
        if not refused_by_the_system(error):
            raise
        try:
            rescued = save_museum(new, Path(tempfile.mkdtemp(prefix="clora-")) / path.name)
        except (MuseumError, OSError):
            raise error from None
        later = f"edit {path} --merge {rescued}" if path.exists() else f"copy it to {path}"
        say(f"What was learned is saved as '{rescued}'. To add it later: {later}")
        raise
    say(f"{path} now holds: {', '.join(read_header(path).words)}")
