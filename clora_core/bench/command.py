"""`bench`: measure what the documents claim."""

import argparse

from . import classification, forgetting, museums, step


def add(parser: argparse.ArgumentParser) -> None:
    """One subcommand for each thing that is measured."""
    kinds = parser.add_subparsers(title="what to measure", metavar="", required=True)
    for kind in (classification, forgetting, museums, step):
        kind.add(kinds)
