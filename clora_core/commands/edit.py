"""`edit`: rename, remove, move or merge exhibits of a museum file, without changing their tensors."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import MuseumError
from ..model.concept import check_word
from ..museum.editing import edited, merged, with_thumbnail
from ..museum.file import Stored, check_target, identity, load_museum, read_header, save_museum
from ..museum.museum import Museum
from ..picture_files import upright
from ..pictures import thumbnail
from ..texts import normal
from .progress import Say


class InOrder(argparse.Action):
    """Collects all edits in the order of the command line."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.edits = [*namespace.edits, (self.option_strings[0].removeprefix("--"), values)]


def add_edits(parser: argparse.ArgumentParser, *edits: tuple[str, tuple[str, ...], str]) -> None:
    """Options that are collected in `edits`. Each: its name, its values, what it does."""
    for name, values, meaning in edits:
        parser.add_argument(
            f"--{name}", dest="edits", nargs=len(values), metavar=values, action=InOrder, default=[], help=meaning
        )


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "edit",
        help="rename, remove, move or merge exhibits",
        description="Edit a museum file. Edits run in the order of the command line and do not change learned weights. "
        "Without --to the file itself is replaced, and the old one is kept as ….backup.",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    add_edits(
        parser,
        ("rename", ("OLD", "NEW"), "give an exhibit another word"),
        ("remove", ("WORD",), "remove an exhibit, and report how much later ones overlap with it"),
        ("move", ("WORD", "PLACE"), "move an exhibit to another place; 1 is the first"),
        ("strength", ("WORD", "S"), "set an exhibit's default strength; 1 is as it was learned"),
        ("merge", ("OTHER",), "add the exhibits of another museum file for the same base"),
        ("thumbnail", ("WORD", "PICTURE"), "use this picture file as an exhibit's thumbnail"),
    )
    parser.add_argument("--to", type=Path, help="file to write instead")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --to, and keep it as ….backup")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if not arguments.edits:
        raise MuseumError('There is nothing to do. Add an edit, such as: --rename "<my-cat>" "<tom>".')
    target: Path = arguments.to or arguments.museum
    if arguments.to:
        check_target(target)
    read = identity(target) if target == arguments.museum and target.exists() else None
    museum, files = load_museum(arguments.museum), [arguments.museum]
    for name, values in arguments.edits:
        if name == "merge":
            files.append(Path(values[0]))
        museum, message = _edited(museum, name, values)
        say(message)
    overwrite = arguments.overwrite or not arguments.to
    save_museum(museum, target, overwrite=overwrite, dtype=_dtype_for(files), read=read)
    say(f"{target} now holds: {', '.join(museum.words) or 'nothing'}")


def _edited(museum: Museum, name: str, values: Sequence[str]) -> tuple[Museum, str]:
    if name == "rename":
        check_word(normal(values[1]))
    match name, *values:
        case "merge", file:
            return merged(museum, load_museum(file)), f"The exhibits of {file} are merged."
        case "thumbnail", word, file:
            return with_thumbnail(museum, word, thumbnail(upright(Path(file)))), f"'{word}' has a new thumbnail."
    return edited(museum, " ".join((name, *values)))


def _dtype_for(files: Sequence[Path]) -> Stored:
    """The dtype of the files if they agree, else float32, which is lossless for all."""
    dtypes: set[Stored] = {read_header(file).dtype for file in files}
    return dtypes.pop() if len(dtypes) == 1 else "float32"
