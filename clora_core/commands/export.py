"""`export`: an ordinary LoRA and embedding files for other programs."""

import argparse
from pathlib import Path

from ..museum.file import check_names, export, load_museum, read_header
from ..museum.museum import missing_partners
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="an ordinary LoRA and embedding files",
        description="Write a museum, or some of its exhibits, as a plain LoRA (kohya's keys) and embedding files of "
        "its words, for ComfyUI, A1111, Forge, InvokeAI and diffusers. Each exhibit is exported at its own strength.",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--exhibits", nargs="+", metavar="WORD", help="only these (all that other programs can show)")
    parser.add_argument("--separate", action="store_true", help="one LoRA per exhibit instead of one for all")
    parser.add_argument("--rank", type=int, help="reduce each projection to at most this rank by SVD (full rank)")
    parser.add_argument("--for-diffusers", action="store_true", help="in diffusers' names, without the bundled words")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files, and keep them as ….backup")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    museum = load_museum(arguments.museum, words=arguments.exhibits)
    check_names(arguments.to)
    arguments.to.mkdir(parents=True, exist_ok=True)
    exported = export(
        museum,
        arguments.to,
        words=arguments.exhibits,
        separate=arguments.separate,
        rank=arguments.rank,
        overwrite=arguments.overwrite,
        for_diffusers=arguments.for_diffusers,
    )
    for path in exported.files:
        say(str(path))
    for path, lost in exported.lost.items():
        say(
            f"{path.name} has at most rank {arguments.rank}. This loses {lost.total:.2%} (‖Δ - nearest‖ / ‖Δ‖), "
            f"at worst {lost.worst:.2%} on {lost.worst_path}."
        )
    for token in museum.tokens:
        if token.phrase and token.word not in exported.left_out:
            say(f"{token.word} stands for “{token.phrase}”: in other programs, write that in prompts.")
    whole = read_header(arguments.museum).exhibits
    for words in [[word] for word in museum.words] if arguments.separate else [museum.words]:
        if note := missing_partners(whole, words):
            say(f"Note: {note}")
    for why in exported.left_out.values():
        say(f"Left out: {why}")
