"""What both implementations of the starter model share: weights, vocabulary and some numbers."""

import itertools
from pathlib import Path
from typing import Any

from ..model.families.starter import STARTER
from . import world

NAME = "starter"  # opens it in commands, instead of a path
WEIGHTS = Path(__file__).parent / "weights"
TOKENS = 32
LATENT_CHANNELS = STARTER.latent_channels
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


def vocabulary() -> list[str]:
    """Three special tokens and all words of captions; the index is the token's id."""
    values = itertools.chain(*world.SAYABLE.values(), *world.THING.values(), world.BASE_STYLES)
    grammar = "a photo picture of with no hair wearing and shirt on in at the style".split()
    return [START, END, UNKNOWN, *sorted({*values, *grammar} - {"none", "bald", "plain"})]


TEXT_CONFIG: dict[str, Any] = {  # of CLIPTextModel
    "vocab_size": len(vocabulary()),
    "hidden_size": STARTER.text_width,
    "intermediate_size": 4 * STARTER.text_width,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "projection_dim": STARTER.text_width,
    "hidden_act": "quick_gelu",
    "bos_token_id": vocabulary().index(START),
    "eos_token_id": vocabulary().index(END),
    "pad_token_id": vocabulary().index(END),
}
