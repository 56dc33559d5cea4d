"""Layer-wise words: a word can have a vector for every cross-attention, which then reads separate text states.

The states of all layers are concatenated along the width, (b, tokens, layers · width), so they pass through everything
that ordinary text states do. Each key and value projection reads its own layer (`attach.Reading`). Layer-wise words are
MuseumMaker's task-wise tokens (arXiv:2404.16612), made as Mix-of-Show's ED-LoRA makes them (arXiv:2305.18292, after P+,
arXiv:2303.09522).
"""

import re
from collections.abc import Iterable

from ..errors import ConceptError
from .concept import ConceptToken
from .projections import Projection

ROWS_AT_ONCE = 128  # in one pass of a text encoder; 33 prompts for each of SDXL's 70 layers would fill 30 GB


def layer_numbers(projections: Iterable[Projection]) -> dict[Projection, int]:
    """Projection → the number of its cross-attention, in the order in which a UNet runs them."""
    paths = {projection: projection.path.rpartition(".")[0] for projection in projections}
    order = {path: number for number, path in enumerate(sorted(set(paths.values()), key=_place))}
    return {projection: order[path] for projection, path in paths.items()}


def layer_count(projections: Iterable[Projection]) -> int:
    """The number of cross-attentions that these projections belong to."""
    return len(set(layer_numbers(projections).values()))


def check_layers(token: ConceptToken, expected: int) -> None:
    """Raise ConceptError for a word with vectors for a different number of cross-attentions."""
    if token.layers not in (1, expected):
        raise ConceptError(
            f"'{token.word}' has vectors for {token.layers} cross-attentions, but this model has {expected}. Use it "
            "with the base that it was learned on."
        )


def _place(path: str) -> tuple[object, ...]:
    """A sort key: down, middle, up, with numbers as numbers."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path))
