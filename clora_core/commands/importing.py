"""`import`: a LoRA or an embedding that was made elsewhere becomes an exhibit."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import MuseumError
from ..model.base import Base
from ..model.concept import TEMPLATES
from ..museum.editing import now
from ..museum.file import (
    OrdinaryLora,
    append_exhibits,
    check_target,
    imported,
    read_embedding,
    read_header,
    read_lora,
    save_museum,
)
from ..museum.museum import Museum
from .model import add_base, open_chosen
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "import",
        help="a LoRA or an embedding that was made elsewhere",
        description="Make an exhibit of a LoRA of kohya's trainer, diffusers, peft or ComfyUI, of an embedding of "
        "textual inversion, or of both together, and add it to a museum (made if it is not there). A museum holds the "
        "keys and values of the cross-attention only; what else a LoRA changes is said, and left out with "
        "--skip-others. The word of a LoRA without an embedding stands for the text that it was trained with: --start.",
    )
    parser.add_argument("--museum", type=Path, required=True, help="museum file to add to")
    parser.add_argument("--word", required=True, help='the new word, such as "<my-cat>"')
    parser.add_argument("--lora", type=Path, help="LoRA file, or peft's folder")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--embedding", type=Path, help="embedding file of the word")
    words.add_argument("--start", help='text that the word shall stand for, such as "sks cat"; needs --base')
    parser.add_argument("--skip-others", action="store_true", help="leave out what a museum has no place for")
    parser.add_argument("--kind", choices=["object", "style"], default="object", help="what it is (object)")
    usual = " or ".join(f'"{template}"' for template in TEMPLATES.values())
    parser.add_argument("--template", default="", help=f"how its word is used ({usual}, by its kind)")
    add_base(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    path: Path = arguments.museum
    if not arguments.lora and not arguments.embedding:
        raise MuseumError("There is nothing to import. Name a --lora, an --embedding, or both.")
    check_target(path)
    header = read_header(path) if path.exists() else None
    lora = read_lora(arguments.lora, skip_others=arguments.skip_others) if arguments.lora else None
    if arguments.base:
        base = open_chosen(arguments)
        fingerprint, known = base.fingerprint, base.modules
        if header:
            Museum(header.base).check_over(fingerprint)
    elif header:
        base, fingerprint, known = None, header.base, header.projections
    else:
        raise MuseumError(f"There is no '{path}' yet. Name the model that it shall belong to: --base.")
    exhibit = imported(
        fingerprint,
        arguments.word,
        _vectors(arguments, base, lora),
        lora,
        known=known,
        kind=arguments.kind,
        template=arguments.template,
        facts={
            "imported": [file.name for file in (arguments.lora, arguments.embedding) if file],
            "date": now(),
        },
    )
    if header:
        append_exhibits([exhibit], path, base=fingerprint)
    else:
        save_museum(Museum(fingerprint, (exhibit,)), path)
    for left_out in lora.left_out if lora else ():
        say(f"Left out: {left_out}")
    say(f"{path} now holds: {', '.join((*(header.words if header else ()), exhibit.word))}")


def _vectors(arguments: argparse.Namespace, base: Base | None, lora: OrdinaryLora | None) -> Mapping[str, Tensor]:
    """What the word stands for: its embedding, a text of the base, or the one word that came with the LoRA."""
    if arguments.embedding:
        return read_embedding(arguments.embedding)
    if arguments.start:
        if base is None:
            raise MuseumError(f"What '{arguments.start}' means is looked up in the model. Name it: --base.")
        return {encoder: vectors[None] for encoder, vectors in base.word_vectors(arguments.start).items()}
    if lora and len(lora.bundled) == 1:
        return next(iter(lora.bundled.values()))
    raise MuseumError(
        f"What shall '{arguments.word}' stand for? Give the LoRA's --embedding, or with --start the text that it was "
        'trained with, such as "sks cat".'
    )
