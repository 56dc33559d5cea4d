"""Let a frozen model answer as if its projections had moved, for as long as a `with` block lasts.

output = W·x + past·x + up·(down·x)          W is neither copied nor touched
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Base
from .errors import BaseModelError
from .low_rank import LowRank
from .projections import Projection


@contextmanager
def attached(base: Base, deltas: Mapping[Projection, LowRank | Tensor]) -> Iterator[None]:
    """While entered, every given projection of the base answers with its delta added: a LowRank, or a matrix (out, in).

    Nothing of the model is changed but its modules' hooks, which come off in any case. Blocks may be nested; their
    deltas add up.
    """
    with ExitStack() as handles:
        for projection, delta in deltas.items():
            module = base.modules.get(projection)
            if module is None:
                raise BaseModelError(
                    f"{base.fingerprint} has no projection '{projection.path}' of shape {projection.shape}."
                )
            handle = module.register_forward_hook(_adding(delta))
            handles.callback(handle.remove)
        yield


def _adding(delta: LowRank | Tensor):
    placed: dict[object, Tensor] = {}  # a dense delta is moved and cast once, not at every step

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if isinstance(delta, LowRank):
            moved = F.linear(F.linear(x, delta.down.to(x)), delta.up.to(x))
        else:
            place = (x.device, x.dtype)
            if place not in placed:
                placed[place] = delta.to(x)
            moved = F.linear(x, placed[place])
        return output + moved.to(output.dtype)

    return hook
