"""The option by which commands that teach find their recipe."""

import argparse

from ..method.recipe import BASELINES, DEFAULT_METHOD, RECIPES
from .progress import Say


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """--recipe. A name that stands for nothing is refused where the recipe is looked up."""
    parser.add_argument(
        "--recipe",
        default=DEFAULT_METHOD,
        metavar="NAME",
        help=f"how to learn: {', '.join(RECIPES)} ({DEFAULT_METHOD}); or one of the baselines in docs/measurements.md",
    )


def tell_of_baseline(method: str, say: Say) -> None:
    """Say so where a baseline was chosen."""
    if method in BASELINES:
        say(f"{method} is a baseline, kept for comparison.")
