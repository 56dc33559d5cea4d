"""`edit`: rename, remove, move, merge: change a museum file without losing anything of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import MuseumError
from ..museum.editing import edited, merged, with_thumbnail
from ..museum.file import Stored, identity, load_museum, read_header, save_museum
from ..museum.museum import Museum
from ..pictures import thumbnail_of
from .progress import Say


class InOrder(argparse.Action):
    """Keeps all edits in the order in which they are written."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.edits = [*namespace.edits, (self.option_strings[0].removeprefix("--"), values)]


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "edit",
        help="rename, remove, move, merge",
        description="Change what a museum holds. Edits are done in the order in which they are written; the tensors of "
        "all exhibits stay as they are. Without --to the file itself is changed, and the old one kept as ….backup.",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    for name, values, meaning in (
        ("rename", ("OLD", "NEW"), "give an exhibit another word"),
        ("remove", ("WORD",), "take an exhibit out, and say how much later ones overlap with it"),
        ("move", ("WORD", "PLACE"), "put an exhibit at another place, from 1"),
        ("strength", ("WORD", "S"), "show an exhibit at this strength by default; 1 is as it was learned"),
        ("merge", ("OTHER",), "add the exhibits of another museum file over the same base"),
        ("thumbnail", ("WORD", "PICTURE"), "show an exhibit by this picture file in lists"),
    ):
        parser.add_argument(
            f"--{name}", dest="edits", nargs=len(values), metavar=values, action=InOrder, default=[], help=meaning
        )
    parser.add_argument("--to", type=Path, help="file to write instead")
    parser.add_argument("--overwrite", action="store_true", help="whether --to may be replaced; it stays as ….backup")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if not arguments.edits:
        raise MuseumError('There is nothing to do. Write edits, such as: --rename "<my-cat>" "<tom>".')
    target: Path = arguments.to or arguments.museum
    read = identity(target) if target == arguments.museum and target.exists() else None
    museum, files = load_museum(arguments.museum), [arguments.museum]
    for name, values in arguments.edits:
        if name == "merge":
            files.append(Path(values[0]))
        museum, done = _edited(museum, name, values)
        say(done)
    overwrite = arguments.overwrite or not arguments.to
    save_museum(museum, target, overwrite=overwrite, dtype=_dtype_for(files), read=read)
    say(f"{target} now holds: {', '.join(museum.words) or 'nothing'}")


def _edited(museum: Museum, name: str, values: Sequence[str]) -> tuple[Museum, str]:
    match name, *values:
        case "merge", file:
            return merged(museum, load_museum(file)), f"The exhibits of {file} are in it now."
        case "thumbnail", word, file:
            return with_thumbnail(museum, word, thumbnail_of(Path(file))), f"'{word}' has another thumbnail now."
    return edited(museum, " ".join((name, *values)))


def _dtype_for(files: Sequence[Path]) -> Stored:
    """How the tensors stood, or float32, which loses nothing of either, where they stood differently."""
    dtypes: set[Stored] = {read_header(file).dtype for file in files}
    return dtypes.pop() if len(dtypes) == 1 else "float32"
