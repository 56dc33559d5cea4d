"""The --recipe option of commands that learn."""

import argparse

from ..method.recipe import BASELINES, DEFAULT_METHOD, RECIPES
from .progress import Say


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """--recipe. `recipe_named` refuses unknown names."""
    parser.add_argument(
        "--recipe",
        default=DEFAULT_METHOD,
        metavar="NAME",
        help=f"how to learn: {', '.join(RECIPES)} ({DEFAULT_METHOD}); or one of the baselines in docs/measurements.md",
    )


def tell_of_baseline(method: str, say: Say) -> None:
    """Tell the user if the method is a baseline."""
    if method in BASELINES:
        say(f"{method} is a baseline, kept for comparison.")
