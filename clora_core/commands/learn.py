"""`learn`: learn a concept and add it to a museum file. It can be stopped at any time and resumed."""

import argparse
import typing
from collections.abc import Callable
from pathlib import Path

from ..errors import ConceptError, RecipeError
from ..learning.processes import launched
from ..method.draft import AUTO, AUTOMATIC, Draft
from ..method.recipe import Recipe, recipe_named
from ..method.regularizers import SelfRegularization
from ..method.settings import SETTINGS
from ..model.concept import Concept, check_word
from ..museum.file import check_target, read_header
from ..picture_files import read_folder
from ..texts import normal
from .concept_list import are_independent, check_in_turn, learn_apart, naming, read_entries
from .model import add_base, add_kind, add_recipe, check_device, open_chosen
from .progress import Say
from .resuming import state_path
from .training import Training, learn_next, museum_in

if typing.TYPE_CHECKING:  # diffusers is optional: commands that open no model do without it
    from ..over_diffusers.base import DiffusersBase

RESOLUTION_LIMIT_PX = 4096


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "learn",
        help="learn a concept from a folder of pictures",
        description="Learn a new word from a folder of pictures and add it to a museum, which is created if needed. "
        "Subfolders are read too. Captions are optional .txt files beside the pictures; write {word} where the new "
        "word belongs. With --list, many concepts in a row. Ctrl-C saves the progress; the same command resumes.",
    )
    add_base(parser)
    parser.add_argument("--museum", type=Path, required=True, help="museum file to add to")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--word", help='the new word, such as "<my-cat>"')
    what.add_argument(
        "--list",
        type=Path,
        metavar="JSON",
        help='a file of concepts to learn one after another: [{"word": "<my-cat>", "images": "cat"}, …], each with its '
        "own options if you like (token_seed for --token-seed); the command's options apply where an entry sets none",
    )
    parser.add_argument("--images", type=Path, help="folder of pictures of the word")
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
    parser.add_argument(
        "--start", default="", help="one or two known words that describe it, to start from (random, as in the paper)"
    )
    parser.add_argument("--token-seed", type=int, default=0, help="seed of the word's random vectors (%(default)s)")
    add_recipe(parser)
    parser.add_argument(
        "--resolution",
        type=int,
        help="pictures keep their shape, at about the area of a square of this side in pixels (the base's resolution)",
    )
    parser.add_argument("--alpha-mask", action="store_true", help="only what is not transparent counts in the loss")
    parser.add_argument("--forgetting-weight", type=float, help="factor for the recipe's protection (1)")
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
    parser.set_defaults(run=run, entry="", title="")


def run(arguments: argparse.Namespace, say: Say) -> None:
    check_device(arguments.device)
    processes = launched(arguments.device)
    arguments.device = processes.device
    say_once = say if processes.first else _ignore
    check_target(arguments.museum)
    asked = read_entries(arguments) if arguments.list else [arguments]
    drafts = [_checked(options) for options in asked]
    base = open_chosen(arguments)
    held = read_header(arguments.museum).words if arguments.list and arguments.museum.exists() else ()
    trainings = []
    for options, draft in zip(asked, drafts, strict=True):
        if normal(options.word) in held:
            say_once(f"{options.word} is already in the museum.")
            continue
        with naming(options.entry):
            trainings.append(Training(options, draft, _concepts(options, base, say_once)))
    if arguments.list:
        museum = museum_in(arguments.museum, base)
        check_in_turn(trainings, base, museum)
        if processes.count > 1 and are_independent(trainings):
            learn_apart(trainings, base, museum, processes, say)
            return
    for training in trainings:
        learn_next(training, base, processes, say_once)


def _checked(options: argparse.Namespace) -> Draft:
    """The recipe of a training. Raises for all that can be wrong without the model and the pictures."""
    with naming(options.entry):
        if not options.images:
            raise ConceptError("--word needs --images, the folder with its pictures.")
        check_target(state_path(options.museum, options.word, "0" * 64))  # its name is longer than the museum's
        for word, _ in _folders(options):
            check_word(word)
        return _draft(options)


def _folders(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The words of a training, and the folders of their pictures."""
    return [*((word, Path(folder)) for word, folder in options.also), (options.word, options.images)]


def _concepts(options: argparse.Namespace, base: "DiffusersBase", say: Say) -> tuple[Concept, ...]:
    resolution = base.resolution_px if options.resolution is None else options.resolution
    if not base.family.side_px <= resolution <= RESOLUTION_LIMIT_PX:
        limits = f"{base.family.side_px} to {RESOLUTION_LIMIT_PX}"
        raise ConceptError(f"--resolution is {resolution}; it must be {limits} pixels for this model.")
    how = {"resolution_px": resolution, "multiple": base.family.side_px, "alpha_mask": options.alpha_mask}
    read_folders = [(word, *read_folder(folder, say=say, **how)) for word, folder in _folders(options)]
    wording = options.kind, options.template
    vectors = options.vectors or 0, options.start, options.token_seed
    return tuple(Concept(word, pictures, *wording, captions, *vectors) for word, pictures, captions in read_folders)


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
