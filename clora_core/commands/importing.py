"""`import`: add a LoRA or an embedding from another program to a museum."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import MuseumError
from ..model.base import Base
from ..museum.editing import now
from ..museum.file import (
    OrdinaryLora,
    append_exhibits,
    check_target,
    imported,
    read_embedding,
    read_header,
    read_lora,
)
from ..museum.museum import Museum
from .model import add_base, add_kind, open_chosen
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "import",
        help="add a LoRA or an embedding from another program",
        description="Turn a LoRA (from kohya's trainer, diffusers, peft or ComfyUI), a textual inversion embedding, or "
        "both together into an exhibit, and add it to a museum, which is created if needed. A museum only holds "
        "cross-attention keys and values; a LoRA that changes other layers is refused unless --skip-others. If a LoRA "
        "has no embedding, give the trigger words that it was trained with: --start.",
    )
    parser.add_argument("--museum", type=Path, required=True, help="museum file to add to")
    parser.add_argument("--word", required=True, help='the new word, such as "<my-cat>"')
    parser.add_argument("--lora", type=Path, help="LoRA file, or a folder written by peft")
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--embedding", type=Path, nargs="+", default=[], help="embedding file of the word; for SDXL perhaps two files"
    )
    words.add_argument("--start", help='the LoRA\'s trigger words, such as "sks cat"; needs --base')
    parser.add_argument("--skip-others", action="store_true", help="skip the layers that a museum cannot hold")
    add_kind(parser)
    add_base(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    path: Path = arguments.museum
    if not arguments.lora and not arguments.embedding:
        raise MuseumError("There is nothing to import. Give a --lora, an --embedding, or both.")
    check_target(path)
    header = read_header(path) if path.exists() else None
    lora = read_lora(arguments.lora, skip_others=arguments.skip_others) if arguments.lora else None
    if arguments.base:
        base = open_chosen(arguments)
        fingerprint, known = base.fingerprint, base.slots
        if header:
            Museum(header.base).check_over(fingerprint)
    elif header:
        base, fingerprint, known = None, header.base, header.projections
    else:
        raise MuseumError(f"There is no '{path}' yet. To create it, give its base model: --base.")
    exhibit = imported(
        fingerprint,
        arguments.word,
        _vectors(arguments, base, lora),
        lora,
        known=known,
        kind=arguments.kind,
        template=arguments.template,
        facts={
            "imported": [file.name for file in (arguments.lora, *arguments.embedding) if file],
            "date": now(),
        },
    )
    append_exhibits([exhibit], path, base=fingerprint)
    for left_out in lora.left_out if lora else ():
        say(f"Left out: {left_out}")
    if lora and (others := [word for word in lora.bundled if word != _bundled_word(arguments, lora)]):
        say(f"Not imported, other words of this LoRA: {', '.join(others)}. Only the word given by --word is imported.")
    say(f"{path} now holds: {', '.join((*(header.words if header else ()), exhibit.word))}")


def _vectors(arguments: argparse.Namespace, base: Base | None, lora: OrdinaryLora | None) -> Mapping[str, Tensor]:
    """The word's vectors: from --embedding, from --start, or from the one word bundled with the LoRA."""
    if arguments.embedding:
        return read_embedding(*arguments.embedding)
    if arguments.start:
        if base is None:
            raise MuseumError(f"The vectors of '{arguments.start}' come from the base model. Give it: --base.")
        return {encoder: vectors[None] for encoder, vectors in base.word_vectors(arguments.start).items()}
    if lora and (word := _bundled_word(arguments, lora)):
        return lora.bundled[word]
    if lora and lora.bundled:
        names = ", ".join(lora.bundled)
        raise MuseumError(f"The LoRA has vectors for the words {names}, but not for '{arguments.word}'. Choose one.")
    raise MuseumError(
        f"'{arguments.word}' has no vectors. Give the LoRA's --embedding, or its trigger words with --start, such as "
        '"sks cat".'
    )


def _bundled_word(arguments: argparse.Namespace, lora: OrdinaryLora) -> str:
    """Which of the words that are bundled with the LoRA is imported; "" for none."""
    if arguments.embedding or arguments.start:
        return ""
    own = [word for word in (arguments.word, arguments.word.strip("<>")) if word in lora.bundled]
    if not own and len(lora.bundled) == 1:
        own = list(lora.bundled)
    return own[0] if own else ""
