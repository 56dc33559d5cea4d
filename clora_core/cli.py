"""The commands, headless: `python -m clora_core <command> --help`."""

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

import torch

from .commands import demo, edit, export, importing, learn, report, show, view
from .errors import Cancelled, CLoRAError
from .texts import printable

EXAMPLES = """
first steps:
  python -m clora_core demo
      learns three characters on the built-in model and measures what is forgotten (no downloads, minutes on a CPU)

your own pictures, over your own model:
  python -m clora_core learn --base sd15.safetensors --museum my.museum.safetensors --word "<my-cat>" --images cat/
  python -m clora_core learn --base sd15.safetensors --museum my.museum.safetensors --word "<my-dog>" --images dog/
  python -m clora_core view  --base sd15.safetensors --museum my.museum.safetensors \\
                             --prompt "<my-cat> and <my-dog> on a sofa" --out both.png
"""

SMALLER = (
    "Hold the model in half of it (--dtype bf16); learn with --checkpointing, --batch-size 1 or a smaller "
    "--resolution; look at fewer or smaller pictures."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 for an error that has been said, 130 when stopped by Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m clora_core",
        description="Teach a text-to-image model one concept after another, keep all of them in one museum file, and "
        "use them by name.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    for command in (demo, learn, view, show, report, edit, importing, export):
        command.add(commands)
    given = sys.argv[1:] if arguments is None else list(arguments)
    bench = commands.add_parser("bench", help="measure speed and forgetting (research)")
    if given[:1] == ["bench"]:
        _add_bench(bench)
    parsed = parser.parse_args(given)
    try:
        parsed.run(parsed, _say)
    except (CLoRAError, OSError) as error:
        _say(f"error: {error}", sys.stderr)
        return 1
    except torch.cuda.OutOfMemoryError:
        _say(f"error: The device is out of memory. {SMALLER}", sys.stderr)
        return 1
    except (Cancelled, KeyboardInterrupt) as stopped:
        _say(f"\n{stopped or 'Stopped.'}", sys.stderr)
        return 130
    return 0


def _say(text: str, to: TextIO | None = None) -> None:
    """Print what may hold texts out of files, without obeying them."""
    print(printable(text), file=to)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    """What `bench` can measure, loaded only when it is asked for."""
    try:
        from .bench import command
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.bench":
            raise
        parser.error("The published node pack has no benchmarks. Clone the repository to run them.")
    command.add(parser)
