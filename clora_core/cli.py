"""The commands, headless: `python -m clora_core <command> --help`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from .commands import classify, demo, edit, export, importing, learn, report, show, view
from .errors import Cancelled, CLoRAError, LearningError
from .learning.processes import launched_count
from .learning.state import is_out_of_memory
from .texts import encodable, printable

EXAMPLES = """
first steps:
  python -m clora_core demo
      learns three characters on the built-in model and measures forgetting (no downloads, minutes on a CPU)

with your own pictures and model:
  python -m clora_core learn --base sd15.safetensors --museum my.museum.safetensors --word "<my-cat>" --images cat/
  python -m clora_core learn --base sd15.safetensors --museum my.museum.safetensors --word "<my-dog>" --images dog/
  python -m clora_core view  --base sd15.safetensors --museum my.museum.safetensors \\
                             --prompt "<my-cat> on a sofa" --out cat.png
"""

OUT_OF_MEMORY = (
    "The device is out of memory. Halve the model with --dtype bf16; learn with --checkpointing, --batch-size 1 or a "
    "smaller --resolution; sample fewer or smaller pictures."
)

HEADLESS = {"diffusers", "transformers", "tokenizers"}  # the optional packages of pyproject.toml that open models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 after an error message, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m clora_core",
        description="Teach a text-to-image model one concept after another, keep all concepts in one museum file, and "
        "use them by name.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    for command in (demo, learn, view, show, report, edit, importing, export, classify):
        command.add(commands)
    words = sys.argv[1:] if arguments is None else list(arguments)
    bench = commands.add_parser("bench", help="measure speed and forgetting (research)")
    if words[:1] == ["bench"]:
        _add_bench(bench)
    parsed = parser.parse_args(words)
    try:
        if parsed.run is not learn.run and launched_count() > 1:
            raise LearningError("Only `learn` runs in several processes. Start this command without a launcher.")
        parsed.run(parsed, _say)
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes
        return 1
    except (CLoRAError, OSError) as error:
        _say(f"error: {error}", sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in HEADLESS:
            raise
        _say(f'error: This command needs {error.name}. Install it with: pip install -e ".[headless]"', sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _say(f"error: {OUT_OF_MEMORY}", sys.stderr)
        return 1
    except (Cancelled, KeyboardInterrupt) as stop:
        _say(f"\n{stop or 'Stopped.'}", sys.stderr)
        return 130
    return 0


def _say(text: str, to: TextIO | None = None) -> None:
    """Print a text that may quote files: control characters, and those that the terminal lacks, are escaped."""
    stream: TextIO = to or sys.stdout
    print(encodable(printable(text), stream.encoding or "utf-8"), file=stream)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `bench`. They are only imported when needed."""
    try:
        from .bench import command
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.bench":
            raise
        parser.error("The published node pack does not include the benchmarks. Clone the repository to run them.")
    command.add(parser)
