"""`learn --list`: a JSON file that names many concepts, which are learned one after another."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CLoRAError, ConceptError
from ..learning.processes import Processes
from ..learning.start import first_token
from ..learning.variation import check_lines
from ..method.settings import SETTINGS
from ..model.concept import words_in
from ..museum.file import load_museum, save_museum
from ..museum.file.files import errors_about
from ..museum.file.json_values import array, json_value, mapping
from ..museum.file.replacing import read_if_intact
from ..museum.museum import Exhibit, Museum
from ..texts import normal
from .progress import Say
from .training import Training, add_to_file

if TYPE_CHECKING:  # diffusers is optional: commands that open no model do without it
    from ..over_diffusers.base import DiffusersBase

OWN = {  # what an entry can say about its concept, and the type of each
    **{"word": str, "images": str, "kind": str, "template": str, "start": str},
    **{"vectors": int, "token_seed": int, "resolution": int, "alpha_mask": bool},
}
TYPES = {str: "a string", int: "a whole number", bool: "true or false"}


def read_entries(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of every training: those of the command, with those of an entry of the list in their place.

    `entry` is how errors call it. Folders are relative to the list's. Raises MuseumError for a file that is no list of
    objects, and ConceptError for an entry with an unknown, missing or invalid option.
    """
    path: Path = arguments.list
    if given := [name for name in ("images", "also", "replace") if getattr(arguments, name)]:
        raise ConceptError(f"--list takes every word and its pictures from the file: leave out --{given[0]}.")
    with errors_about(path):
        content = path.read_text("utf-8-sig")
    entries = array(json_value(content, path.name), path.name)
    if not entries:
        raise ConceptError(f"{path.name} has no entries. Write one for each concept, with its word and images.")
    trainings: list[argparse.Namespace] = []
    places: dict[str, int] = {}
    for place, entry in enumerate(entries, start=1):
        name = f"{path.name}, entry {place}"
        with naming(name):
            own = _checked(mapping(entry, "It"), path.parent)
            if (first := places.setdefault(normal(own["word"]), place)) != place:
                raise ConceptError(f"Entry {first} has the word {own['word']} too. Give each concept its own.")
        named = {"entry": f"{name} ({own['word']})", "title": f"{own['word']} ({place} of {len(entries)})"}
        trainings.append(argparse.Namespace(**vars(arguments) | own | named))
    return trainings


@contextmanager
def naming(entry: str) -> Iterator[None]:
    """Errors in the block begin with this name of an entry; "" for none."""
    try:
        yield
    except CLoRAError as error:
        if not entry:
            raise
        raise ConceptError(f"{entry}: {error}") from error


def _checked(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of an entry. The recipe's settings are checked by the recipe."""
    for name, value in entry.items():
        if name not in OWN and name not in SETTINGS:
            known = ", ".join([*OWN, *SETTINGS])
            raise ConceptError(f"There is no option '{name:.60}'. An entry can have: {known}.")
        if (kind := OWN.get(name)) and type(value) is not kind:
            raise ConceptError(f"{name} is {value!r:.60}; it must be {TYPES[kind]}.")
    for name in ("word", "images"):
        if not entry.get(name):
            raise ConceptError(f"It has no {name}. Every entry needs a word and images, the folder of its pictures.")
    images = folder / entry["images"]
    if not images.is_dir():
        raise ConceptError(f"'{images}' is not a folder. Give the folder with the pictures, relative to the list's.")
    return {**entry, "images": images}


def check_in_turn(trainings: Sequence[Training], base: "DiffusersBase", museum: Museum) -> None:
    """Raise ConceptError for a concept that cannot be learned after the museum and those before it in the list."""
    for training in trainings:
        with naming(training.options.entry):
            learning = training.learning(base, museum)
            for concept in learning.concepts:
                check_lines(concept, learning.recipe)
                token = first_token(base, concept, learning.recipe)
                museum = museum.with_exhibits(Exhibit(token, {}, learning.recipe, concept.kind, concept.prompt))


def are_independent(trainings: Sequence[Training]) -> bool:
    """Whether the others change nothing for any of them: by its recipe, and by its captions, which can have words."""
    concepts = [concept for training in trainings for concept in training.concepts]
    words = [concept.word for concept in concepts]
    alone = all(set(words_in("\n".join(concept.prompts()), words)) == {concept.word} for concept in concepts)
    return alone and all(training.draft.recipe.independent for training in trainings)


def learn_apart(
    trainings: Sequence[Training], base: "DiffusersBase", museum: Museum, processes: Processes, say: Say
) -> None:
    """Learn independent concepts, each in one of the processes. The first process adds all of them, in order.

    Until then, each is in a museum of its own beside the file, where the same command finds it after a stop.
    """
    parts = []
    for number, training in enumerate(trainings):
        learning = training.learning(base, museum)
        state = training.state(learning)
        parts.append(part := state.with_name(state.name.replace(".learning.", ".learned.")))
        if number % processes.count != processes.number:
            continue
        if part.exists() and read_if_intact(part, load_museum, say):
            say(f"{training.options.word} is learned already, in {part}.")
            continue
        alone = Processes(device=processes.device)
        learning, new = training.run(learning, base, alone, say, shown=processes.first)
        save_museum(Museum(museum.base, new), part)
        say(f"{training.options.word} is learned.")
        training.state(learning).unlink(missing_ok=True)
        training.along(learning, say).end(new)
    processes.wait()
    if processes.first and parts:
        new = tuple(exhibit for part in parts for exhibit in load_museum(part).exhibits)
        add_to_file(Museum(museum.base, new), trainings[0].options.museum, say)
        for part in parts:
            part.unlink()
