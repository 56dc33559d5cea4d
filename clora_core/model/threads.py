"""How many of the processor's threads a model computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .families.family import Family


@contextmanager
def threads_of(family: Family) -> Iterator[None]:
    """While entered, this thread's work runs on as many threads as the family's numbers say.

    OpenMP's threads spin while they wait for each other. If other programs run too, that makes a network as small as
    the starter's several times slower than with one thread; if none do, two threads gain little.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, family.numbers.threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
