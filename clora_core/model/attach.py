"""Let a frozen model answer as if its projections had moved, for as long as a `with` block lasts.

output = W·x + past·x + up·(down·x)          W is neither copied nor touched

A gated delta moves the keys and values at its own word's places only, so a prompt without the word is answered by the
base model, bit for bit. Not in the papers; it cannot be merged into the weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BaseModelError
from .base import Base
from .low_rank import LowRank
from .projections import Projection


@dataclass(frozen=True)
class Gate:
    """Where a delta acts: at its word's own places or, `onwards`, at all places from the word's first one on."""

    word: str
    onwards: bool = False

    def opened(self, base: Base, x: Tensor) -> Tensor | None:
        """The text states (b, tokens, width) with zeros where the delta does not act; None if that is everywhere."""
        places = base.places.get(self.word)
        if places is None:
            return None
        if self.onwards:
            places = places.cumsum(1) > 0
        return x * places[..., None].to(x)


class Attachment:
    """Deltas that are attached, which may be left out for a while."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While entered, the base answers as if these deltas were not attached."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


@contextmanager
def attached(
    base: Base, deltas: Mapping[Projection, LowRank | Tensor], gate: Gate | None = None
) -> Iterator[Attachment]:
    """While entered, every given projection of the base answers with its delta added: a LowRank, or a matrix (out, in).

    Nothing of the model is changed but its modules' hooks, which come off in any case. Blocks may be nested; their
    deltas add up.
    """
    attachment = Attachment()
    with ExitStack() as handles:
        for projection, delta in deltas.items():
            module = base.modules.get(projection)
            if module is None:
                raise BaseModelError(
                    f"{base.fingerprint} has no projection '{projection.path}' of shape {projection.shape}."
                )
            handle = module.register_forward_hook(_adding(base, delta, gate, attachment))
            handles.callback(handle.remove)
        yield attachment


def _adding(base: Base, delta: LowRank | Tensor, gate: Gate | None, attachment: Attachment):
    placed: Tensor | None = None  # a dense delta is moved and cast once, not at every step

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal placed
        x = gate.opened(base, inputs[0]) if gate else inputs[0]
        if x is None or not attachment.on:
            return output
        if isinstance(delta, LowRank):
            moved = F.linear(F.linear(x, delta.down.to(x)), delta.up.to(x))
        else:
            if placed is None or (placed.device, placed.dtype) != (x.device, x.dtype):
                placed = delta.to(x)
            moved = F.linear(x, placed)
        return output + moved.to(output.dtype)

    return hook
