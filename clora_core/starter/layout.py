"""What every implementation of the starter model has to know: its weights, its words, and a few numbers."""

import itertools
from pathlib import Path

from ..model.families.starter import STARTER
from . import world

NAME = "starter"  # by which commands open it, in place of a path
WEIGHTS = Path(__file__).parent / "weights"
TOKENS = 32
LATENT_CHANNELS = STARTER.latent_channels
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, after three special tokens; a word's place is its id."""
    values = itertools.chain(*world.SAYABLE.values(), *world.THING.values(), world.BASE_STYLES)
    grammar = "a photo picture of with no hair wearing and shirt on in at the style".split()
    return [START, END, UNKNOWN, *sorted({*values, *grammar} - {"none", "bald", "plain"})]
