"""Shared by benchmarks: museums of random numbers, and facts about the machine."""

import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..method.recipe import Recipe
from ..model.base import Base, Fingerprint
from ..model.concept import ConceptToken
from ..model.families.family import Family
from ..model.low_rank import LowRank
from ..model.projections import Projection, Slot
from ..museum.museum import Exhibit, Museum
from ..seeds import seeded

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, eq=False)
class Shape:
    """A base without weights."""

    fingerprint: Fingerprint
    family: Family
    slots: Mapping[Projection, Slot]


def random_deltas(projections: Iterable[Projection], rank: int, rng: torch.Generator) -> dict[Projection, LowRank]:
    """Small ones, for every projection."""
    return {
        projection: LowRank(
            torch.randn(projection.shape[0], rank, generator=rng) * 0.01,
            torch.randn(rank, projection.shape[1], generator=rng) * 0.01,
        )
        for projection in projections
    }


def random_museum(base: Base | Shape, count: int, rank: int) -> Museum:
    """Exhibits of random small factors on every projection."""
    exhibits = []
    for number in range(count):
        rng = seeded("bench museum", number)
        deltas = random_deltas(base.slots, rank, rng)
        vectors = {encoder: torch.zeros(1, 1, width) for encoder, width in base.family.encoders.items()}
        exhibits.append(Exhibit(ConceptToken(f"<past-{number}>", vectors), deltas, Recipe(rank=rank)))
    return Museum(base.fingerprint, tuple(exhibits))


def machine(device: torch.device) -> dict[str, object]:
    """The machine of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def memory_peak_gib(device: torch.device) -> float | None:
    """The peak memory on the GPU, or of this process. None on Windows without a GPU.

    On Linux, `getrusage` would begin with the memory of the process that started this one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if STATUS.exists():
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
