"""`learn`: teach one concept and put it into a museum file; stop at any time, go on with the same command."""

import argparse
import dataclasses
import glob
import hashlib
import typing
from pathlib import Path

from ..errors import Cancelled, CLoRAError, MuseumError, RecipeError
from ..learning.learn import Learning, Progress
from ..learning.state import LearningState, NotFiniteError, StateError, load_state, save_state
from ..method.recipe import Recipe, guarding, recipe_named, shared_by
from ..method.regularizers import SelfRegularization
from ..model.concept import TEMPLATES, Concept, check_word
from ..museum.editing import dated
from ..museum.file import append_exhibits, check_target, load_museum, read_header, save_museum
from ..museum.file.files import refused_by_the_system
from ..museum.file.replacing import set_aside
from ..museum.museum import Exhibit, Museum
from ..pictures import read_folder
from .model import add_base, open_chosen
from .progress import Bar, Say, listening_for_ctrl_c
from .recipe import add_recipe, tell_of_baseline

SAVE_EVERY = 50  # steps between two autosaves

NUMBERS = {
    "rank": "rank of every delta; more holds more detail and takes more room",
    "steps": "updates",
    "learning_rate": "of the deltas",
    "token_learning_rate": "of the word's vectors",
    "batch_size": "pictures seen at once",
    "accumulation": "batches gathered before every update",
    "clip_norm": "longest gradient of an update",
    "weight_decay": "of the deltas",
    "schedule": "how the learning rates go: constant, cosine or linear (to zero)",
    "warmup": "share of the steps in which the rates rise from zero",
    "min_snr_gamma": "min-SNR weighting of timesteps; 5 is usual, 0 is off",
    "precision": "fp32, bf16 or fp16",
    "seed": "of everything random while learning",
}


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "learn",
        help="teach a model one concept from a folder of pictures",
        description="Learn a new word from a folder of pictures and add it to a museum (made if it is not there). "
        "Captions may lie beside the pictures as .txt files; write {word} where the new word belongs. "
        "Ctrl-C keeps what was learned so far; the same command goes on from there.",
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
        help="another word and folder, learned at the same time with deltas that all share (joint learning), times as "
        "many ranks and steps; may be given several times",
    )
    parser.add_argument(
        "--kind", choices=["object", "style"], default="object", help="what the pictures share (object)"
    )
    usual = " or ".join(f'"{template}"' for template in TEMPLATES.values())
    parser.add_argument("--template", default="", help=f"what is said of each picture ({usual}, by its kind)")
    parser.add_argument("--vectors", type=int, default=1, help="vectors of the word (1)")
    parser.add_argument("--start", default="", help="existing word to start from (random, as in the paper)")
    parser.add_argument("--token-seed", type=int, default=0, help="seed of the word's random vectors (0)")
    add_recipe(parser)
    parser.add_argument("--resolution", type=int, help="side of the pictures in pixels (the base's own)")
    parser.add_argument("--forgetting-weight", type=float, help="protection, times the recipe's own (1)")
    parser.add_argument("--forgetting-lambda", type=float, help="with c-lora: the paper's λ instead of κ (it has 1e8)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, about a third slower")
    defaults = Recipe()
    types = typing.get_type_hints(Recipe)
    for name, meaning in NUMBERS.items():
        kind = types[name]
        options: dict = {"type": kind} if kind in (int, float) else {"choices": typing.get_args(kind)}
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{meaning} ({getattr(defaults, name)})", **options)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    check_target(arguments.museum)
    wanted = [*((word, Path(folder)) for word, folder in arguments.also), (arguments.word, arguments.images)]
    recipe = shared_by(chosen_recipe(arguments), len(wanted))
    for word, _ in wanted:
        check_word(word)
    base = open_chosen(arguments)
    museum = load_museum(arguments.museum) if arguments.museum.exists() else Museum(base.fingerprint)
    resolution = arguments.resolution or base.resolution_px
    concepts = tuple(_concept(word, folder, arguments, resolution) for word, folder in wanted)
    what = " and ".join(f"{each.word} from {len(each.pictures)} pictures" for each in concepts)
    tell_of_baseline(recipe.method, say)
    say(f"Learning {what} over {base.fingerprint}, recipe {recipe.method}.")
    learning = Learning(base, museum, concepts, recipe)
    unfinished = state_path(arguments.museum, arguments.word, learning.key)
    learned = learn_keeping(learning, unfinished, say)
    new = tuple(dated(exhibit, concept) for exhibit, concept in zip(learned, concepts, strict=True))
    path = _added(Museum(museum.base, new), arguments.museum)
    unfinished.unlink(missing_ok=True)
    say(f"{path} now holds: {', '.join(read_header(path).words)}")


def _added(new: Museum, path: Path) -> Path:
    """Write the exhibits to the file as it is by now: others may have added to it, or made it, meanwhile."""
    if not path.exists():
        try:
            return save_museum(new, path)
        except MuseumError:
            if not path.exists():
                raise
    return append_exhibits(new.exhibits, path, base=new.base)


def _concept(word: str, folder: Path, arguments: argparse.Namespace, resolution: int) -> Concept:
    pictures, captions = read_folder(folder, resolution_px=resolution)
    return Concept(
        word,
        pictures,
        arguments.kind,
        arguments.template,
        captions,
        arguments.vectors,
        arguments.start,
        arguments.token_seed,
    )


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """The named recipe with the numbers that were given."""
    numbers = {name: value for name in NUMBERS if (value := getattr(arguments, name)) is not None}
    numbers |= {"flip": arguments.flip, "checkpointing": arguments.checkpointing}
    recipe = recipe_named(arguments.recipe, **numbers)
    if arguments.forgetting_lambda is not None:
        if arguments.recipe != "c-lora":
            raise RecipeError("--forgetting-lambda is the weight of C-LoRA's own penalty: add --recipe c-lora.")
        return dataclasses.replace(recipe, regularizers=(SelfRegularization(arguments.forgetting_lambda, False),))
    return recipe if arguments.forgetting_weight is None else guarding(recipe, arguments.forgetting_weight)


def learn_keeping(learning: Learning, path: Path, say: Say) -> tuple[Exhibit, ...]:
    """Learn with a progress bar and autosaves at `path`; go on from there if there is such a file.

    One that is damaged is set aside, and learning begins anew.
    """
    resume = _resumable(path, say)
    with listening_for_ctrl_c() as pressed, Bar(learning.words[-1], learning.recipe.steps) as bar:

        def report(progress: Progress) -> None:
            bar.report(progress)
            if pressed.is_set() or progress.step % SAVE_EVERY == 0 or progress.step == progress.steps:
                try:
                    save_state(progress.snapshot(), path)
                except MuseumError as error:
                    if pressed.is_set():
                        raise
                    say(f"What was learned by step {progress.step} is not kept yet: {error}")
            if pressed.is_set():
                raise Cancelled(f"Stopped at step {progress.step}. The same command goes on from there ({path}).")

        try:
            return learning.run(report=report, resume=resume)
        except StateError as error:
            _begin_anew(path, error, say)
        except NotFiniteError as error:
            if error.state.step:
                save_state(error.state, path)
            raise
    return learn_keeping(learning, path, say)


def state_path(museum: Path, word: str, key: str) -> Path:
    """Where an unfinished learning of this word, with these pictures and numbers, is kept, beside its museum."""
    named = hashlib.sha256(word.encode()).hexdigest()[:8]
    return museum.with_name(f"{museum.stem}.{named}.{key[:8]}.learning.safetensors")


def _resumable(path: Path, say: Say) -> LearningState | None:
    if path.exists():
        try:
            state = load_state(path)
        except MuseumError as error:
            if isinstance(error.__cause__, PermissionError):
                say(f"{error} The learning begins anew.")
                return None
            if refused_by_the_system(error):
                raise
            _begin_anew(path, error, say)
            return None
        say(f"Going on from step {state.step}.")
        return state
    same_word, *_ = path.name.rsplit(".", 3)
    for other in sorted(path.parent.glob(f"{glob.escape(same_word)}.*.learning.safetensors")):
        say(f"{other} holds an unfinished learning of this word with another museum, pictures or numbers. It stays.")
    return None


def _begin_anew(path: Path, error: CLoRAError, say: Say) -> None:
    say(f"{error} It is set aside as '{set_aside(path).name}', and the learning begins anew.")
