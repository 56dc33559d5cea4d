"""`export`: an ordinary LoRA and embedding files, for every other program."""

import argparse
from pathlib import Path

from ..storage import export, load_museum
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="an ordinary LoRA and embedding files",
        description="Write a museum, or some of its exhibits, as a plain LoRA (kohya's keys) and one embedding file a "
        "word, for ComfyUI, A1111, Forge, InvokeAI and diffusers.",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    parser.add_argument("--to", type=Path, required=True, help="folder to write to")
    parser.add_argument("--exhibits", nargs="+", metavar="WORD", help="only these (all)")
    parser.add_argument("--separate", action="store_true", help="one LoRA per exhibit instead of one for all")
    parser.add_argument("--for-diffusers", action="store_true", help="without bundled words, which diffusers refuses")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    arguments.to.mkdir(parents=True, exist_ok=True)
    museum = load_museum(arguments.museum, words=arguments.exhibits)
    for path in export(museum, arguments.to, separate=arguments.separate, for_diffusers=arguments.for_diffusers):
        say(str(path))
