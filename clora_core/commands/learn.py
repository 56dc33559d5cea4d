"""`learn`: learn a concept and add it to a museum file. It can be stopped at any time and resumed."""

import argparse
import dataclasses
import os
import shutil
import tempfile
import typing
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..errors import ConceptError, MuseumError, RecipeError
from ..learning.fitting import computed, described, fitted, lighter_after
from ..learning.learn import Learning
from ..learning.processes import launched
from ..learning.state import OutOfMemoryError, load_state
from ..method.draft import AUTO, AUTOMATIC, Draft
from ..method.recipe import Recipe, recipe_named
from ..method.regularizers import SelfRegularization
from ..method.settings import SETTINGS
from ..model.base import Base
from ..model.concept import Concept, check_word, largest
from ..museum.editing import dated
from ..museum.file import append_exhibits, check_target, load_museum, read_header, save_museum
from ..museum.file.files import identity, refused_by_the_system
from ..museum.museum import Museum
from ..picture_files import read_folder
from ..texts import counted
from .along import Along
from .model import add_base, add_kind, add_recipe, check_device, open_chosen, probed, tell_of_baseline, training_bytes
from .progress import Say
from .resuming import run_resumably, state_path

RESOLUTION_LIMIT_PX = 4096


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "learn",
        help="learn a concept from a folder of pictures",
        description="Learn a new word from a folder of pictures and add it to a museum, which is created if needed. "
        "Subfolders are read too. Captions are optional .txt files beside the pictures; write {word} where the new "
        "word belongs. Ctrl-C saves the progress; the same command resumes.",
    )
    add_base(parser)
    parser.add_argument("--museum", type=Path, required=True, help="museum file to add to")
    parser.add_argument("--word", required=True, help='the new word, such as "<my-cat>"')
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("WORD", "IMAGES"),
        help="another word and folder to learn at the same time with shared deltas (joint learning); multiplies rank "
        "and steps by the number of words; can be repeated",
    )
    add_kind(parser)
    parser.add_argument("--vectors", type=_number(int), default=0, help="number of vectors of the word (auto)")
    parser.add_argument("--start", default="", help="existing word to start from (random, as in the paper)")
    parser.add_argument("--token-seed", type=int, default=0, help="seed of the word's random vectors (%(default)s)")
    add_recipe(parser)
    parser.add_argument(
        "--resolution",
        type=int,
        help="pictures keep their shape, at about the area of a square of this side in pixels (the base's resolution)",
    )
    parser.add_argument("--alpha-mask", action="store_true", help="only what is not transparent counts in the loss")
    parser.add_argument("--forgetting-weight", type=float, help="factor on the recipe's regularizer weights (1)")
    parser.add_argument("--forgetting-lambda", type=float, help="c-lora only: the paper's λ (1e8 there) instead of κ")
    parser.add_argument(
        "--other-checkpoint",
        action="store_true",
        help="allow a museum that was trained on another checkpoint of the same family",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="learn the museum's last word again; with more --steps and a constant schedule, training continues. "
        "The old file is kept as ….backup",
    )
    parser.add_argument(
        "--keep-every", type=int, default=0, metavar="N", help="also save the museum as it is every N steps, to choose"
    )
    parser.add_argument(
        "--preview-every",
        type=int,
        default=0,
        metavar="N",
        help="also save a sample picture every N steps, and at the end a sheet of exhibits before and after",
    )
    defaults, types = Recipe(), typing.get_type_hints(Recipe)
    for name, setting in SETTINGS.items():
        option, kind, default = f"--{name.replace('_', '-')}", types[name], getattr(defaults, name)
        automatic = name in AUTOMATIC
        if kind is bool:
            parser.add_argument(option, action="store_true", help=setting.meaning)
            continue
        number, choices = kind in (int, float), [AUTO] * automatic + [*typing.get_args(kind)]
        options: dict = {"type": _number(kind)} if number else {"choices": choices}
        parser.add_argument(option, help=f"{setting.meaning} ({AUTO if automatic else default})", **options)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    check_device(arguments.device)
    processes = launched(arguments.device)
    arguments.device = processes.device
    if not processes.first:
        say = _ignore
    check_target(arguments.museum)
    check_target(state_path(arguments.museum, arguments.word, "0" * 64))  # its name is longer
    folders = [*((word, Path(folder)) for word, folder in arguments.also), (arguments.word, arguments.images)]
    draft = _draft(arguments)
    for word, _ in folders:
        check_word(word)
    base = open_chosen(arguments)
    read = identity(arguments.museum) if arguments.museum.exists() else None
    museum = load_museum(arguments.museum) if read else Museum(base.fingerprint)
    earlier = _before(museum, [word for word, _ in folders]) if arguments.replace else museum
    replaced = len(earlier.exhibits) < len(museum.exhibits)
    resolution = base.resolution_px if arguments.resolution is None else arguments.resolution
    if not base.family.side_px <= resolution <= RESOLUTION_LIMIT_PX:
        limits = f"{base.family.side_px} to {RESOLUTION_LIMIT_PX}"
        raise ConceptError(f"--resolution is {resolution}; it must be {limits} pixels for this model.")
    options = {"resolution_px": resolution, "multiple": base.family.side_px, "alpha_mask": arguments.alpha_mask}
    read_folders = [(word, *read_folder(folder, say=say, **options)) for word, folder in folders]
    wording = arguments.kind, arguments.template
    vectors = arguments.vectors or 0, arguments.start, arguments.token_seed
    concepts = tuple(Concept(word, pictures, *wording, captions, *vectors) for word, pictures, captions in read_folders)
    names = " and ".join(f"{concept.word} from {counted(len(concept.pictures), 'picture')}" for concept in concepts)
    device, size = probed(base.device), largest(concepts)

    def needed(choice: Recipe) -> int:
        return training_bytes(base, choice, earlier, size)

    recipe = fitted(draft, base.family, device, needed, concepts)
    tell_of_baseline(recipe.method, say)
    say(f"Learning {names} on {base.fingerprint}, recipe {recipe.method}.")
    _check_room(arguments.museum, base, recipe)
    file = Path(arguments.base).name
    finished = arguments.museum.with_name(f"{arguments.museum.stem}.finished")
    while True:
        say(f"{described(recipe, base.family, device)}.")
        learning = Learning(base, earlier, concepts, recipe, file, arguments.other_checkpoint)
        for note in learning.notes:
            say(f"Note: {note}")
        state = state_path(arguments.museum, arguments.word, learning.key)
        along = Along(learning, arguments.museum, arguments.keep_every, arguments.preview_every, say)
        if processes.first:
            _take_up(finished, state, learning.key, recipe.steps)
            if not state.exists():
                along.begin()
        run, title = partial(learning.run, processes=processes), arguments.word
        try:
            exhibits = run_resumably(run, state, say, recipe.steps, title=title, along=along.step, processes=processes)
            break
        except OutOfMemoryError as error:
            if processes.count > 1:
                raise
            less = lighter_after(error, draft, recipe)
            say(f"Out of memory at step {error.state.step + 1} with {computed(recipe)}. It goes on with less:")
            recipe = less
    if not processes.first:
        return
    new = tuple(dated(exhibit, concept) for exhibit, concept in zip(exhibits, concepts, strict=True))
    if replaced:
        dtype, whole = read_header(arguments.museum).dtype, earlier.with_exhibits(*new)
        path = save_museum(whole, arguments.museum, overwrite=True, dtype=dtype, read=read)
    else:
        path = _kept(Museum(museum.base, new), arguments.museum, say)
    say(f"{path} now holds: {', '.join(read_header(path).words)}")
    if recipe.open_ended and state.exists():
        os.replace(state, finished)
        say(f"To train further: the same command with more --steps and --replace. It continues from {finished}.")
    else:
        state.unlink(missing_ok=True)
    along.end(new)


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


def _check_room(path: Path, base: Base, recipe: Recipe) -> None:
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


def _kept(new: Museum, path: Path, say: Say) -> Path:
    """Add the exhibits to the museum's file; if the system refuses, they are saved elsewhere, with a message."""
    try:
        return append_exhibits(new.exhibits, path, base=new.base)
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


def _draft(arguments: argparse.Namespace) -> Draft:
    """The named recipe with the numbers from the command line."""
    numbers = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not False}
    draft = Draft(recipe_named(arguments.recipe)).with_numbers(**numbers)
    if arguments.forgetting_lambda is not None:
        if arguments.recipe != "c-lora":
            raise RecipeError("--forgetting-lambda is the weight of C-LoRA's penalty: add --recipe c-lora.")
        return draft.with_numbers(regularizers=(SelfRegularization(arguments.forgetting_lambda, False),))
    return draft if arguments.forgetting_weight is None else draft.guarding(arguments.forgetting_weight)


def _number(kind: type) -> Callable[[str], float | None]:
    """Reads a number, or "auto" as None."""

    def read(text: str) -> float | None:
        return None if text == AUTO else kind(text)

    read.__name__ = kind.__name__  # argparse names it in errors
    return read


def _ignore(text: str) -> None:
    """`Say` of the other processes, which stay silent: the first process prints everything."""
