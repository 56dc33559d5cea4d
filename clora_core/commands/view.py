"""`view`: sample pictures of a prompt with a museum's words."""

import argparse
import os
import re
from pathlib import Path

from PIL import Image

from ..errors import CLoRAError
from ..model.concept import check_text, mentions, skip_note, unknown_words
from ..model.sampling import sample
from ..museum.file import check_names, load_view, read_header
from ..museum.museum import STRENGTH_LIMIT, Museum, missing_partners, parse_strengths, viewing
from ..sheets import grid, write_picture
from ..texts import counted
from .model import add_base, add_sampling, open_chosen, sampling_of
from .progress import Bar, Say

WEIGHTED = re.compile(r"\([^()]*:\s*[-+.\d]+\s*\)")


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "view",
        help="sample pictures with a museum's words",
        description="Sample pictures of a prompt, with all exhibits applied as in the paper, or with chosen exhibits.",
    )
    add_base(parser)
    parser.add_argument("--museum", type=Path, required=True, help="museum file")
    parser.add_argument("--prompt", required=True, help='such as "a photo of <my-cat> in the snow"')
    parser.add_argument("--out", type=Path, default=Path("view.png"), help="picture to write (%(default)s)")
    parser.add_argument("--exhibits", nargs="+", metavar="WORD[:STRENGTH]", help='such as "<my-cat>" "<my-dog>:0.8"')
    parser.add_argument("--strength", type=float, default=1.0, help="of all exhibits (1)")
    parser.add_argument("--count", type=int, default=4, help="number of pictures (%(default)s)")
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    check_names(arguments.out)
    check_text(arguments.prompt)
    if not arguments.out.parent.is_dir():
        raise CLoRAError(f"There is no folder '{arguments.out.parent}' for the picture. Create it first.")
    if arguments.count < 1:
        raise CLoRAError(f"--count is {arguments.count}; it must be at least 1.")
    if not abs(arguments.strength) <= STRENGTH_LIMIT:
        raise CLoRAError(
            f"--strength is {arguments.strength}; it must be between -{STRENGTH_LIMIT} and {STRENGTH_LIMIT}."
        )
    if Image.registered_extensions().get(arguments.out.suffix.lower()) not in Image.SAVE:
        raise CLoRAError(f"'{arguments.out}' must end in the suffix of a picture, such as .png.")
    if arguments.out.is_dir() or not os.access(arguments.out.parent, os.W_OK):
        raise CLoRAError(f"The picture cannot be written to '{arguments.out}'. Choose another --out.")
    base = open_chosen(arguments)
    header = read_header(arguments.museum)
    if note := Museum(header.base).shown_over(base.fingerprint):
        say(f"Note: {note}")
    chosen = parse_strengths(arguments.exhibits or []) or dict.fromkeys(header.words, 1.0)
    strengths = {word: strength * arguments.strength for word, strength in chosen.items()}
    museum = load_view(arguments.museum, strengths)
    words = [token.word for token in museum.tokens]
    if unknown := unknown_words(arguments.prompt, words):
        say("Note: " + " ".join(unknown))
    elif not any(mentions(arguments.prompt, word) for word in words):
        say(f"Note: the prompt contains none of the museum's words ({', '.join(words)}).")
    for note in filter(None, (skip_note(museum.tokens, base.clip_skip), missing_partners(header.exhibits, words))):
        say(f"Note: {note}")
    if weights := WEIGHTED.findall(arguments.prompt):
        say(f"Note: weights like {weights[0]} work in ComfyUI; here they are read as plain text.")
    sampling, shape = sampling_of(arguments, base)
    with viewing(base, museum.deltas, museum.gated, strengths), Bar("sampling", 1) as bar:
        prompts = [arguments.prompt] * arguments.count
        pictures = sample(base, prompts, museum.tokens, sampling, latent_shape=shape, report=bar.of)
    write_picture(grid(pictures, columns=min(4, arguments.count)), arguments.out)
    say(f"{arguments.out}: {counted(arguments.count, 'picture')} of “{arguments.prompt}”")
