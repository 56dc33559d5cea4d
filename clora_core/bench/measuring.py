"""What benchmarks share: museums of random numbers, and on which machine they ran."""

import platform
from collections.abc import Mapping
from typing import Protocol

import torch

from ..method.recipe import Recipe
from ..model.base import Fingerprint
from ..model.concept import ConceptToken
from ..model.families.family import Family
from ..model.low_rank import LowRank
from ..model.projections import Projection, Slot
from ..museum.museum import Exhibit, Museum
from ..seeds import seeded


class Shaped(Protocol):
    """What is asked of a base whose weights do not matter."""

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def family(self) -> Family: ...

    @property
    def slots(self) -> Mapping[Projection, Slot]: ...


def random_museum(base: Shaped, count: int, rank: int) -> Museum:
    """Exhibits of random small factors on every projection."""
    exhibits = []
    for number in range(count):
        rng = seeded("bench museum", number)
        deltas = {
            projection: LowRank(
                torch.randn(projection.shape[0], rank, generator=rng) * 0.01,
                torch.randn(rank, projection.shape[1], generator=rng) * 0.01,
            )
            for projection in base.slots
        }
        vectors = {encoder: torch.zeros(1, 1, width) for encoder, width in base.family.encoders.items()}
        exhibits.append(Exhibit(ConceptToken(f"<past-{number}>", vectors), deltas, Recipe(rank=rank)))
    return Museum(base.fingerprint, tuple(exhibits))


def machine(device: torch.device) -> dict[str, object]:
    """What it was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
