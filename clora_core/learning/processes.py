"""Several processes that share the batches of every update. `accelerate launch` and `torchrun` start them.

Every process computes its share of the `accumulation` batches. The gradients are added up, so all processes make the
same update, which is that of one process but for rounding.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import RecipeError

PATIENCE = timedelta(hours=6)  # with the first process, which saves and draws previews


@dataclass(frozen=True)
class Processes:
    """This process's number, from 0, and how many there are. device: what it computes on."""

    number: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and messages."""
        return self.number == 0

    def own(self, batches: int) -> range:
        """The numbers of this process's batches. Raises RecipeError if there are too few for all processes."""
        if batches < self.count:
            raise RecipeError(
                f"{self.count} processes share the batches of an update, but accumulation is {batches}. Set it to at "
                f"least {self.count}; a smaller batch size keeps the pictures per update the same."
            )
        return range(self.number, batches, self.count)

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter the sum of all processes' gradients; none if no process has one."""
        if self.count == 1:
            return
        parameters = list(parameters)
        present = self._sum(torch.tensor([float(p.grad is not None) for p in parameters])).bool().tolist()
        shared = [parameter for parameter, known in zip(parameters, present, strict=True) if known]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
        total = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(shared, total.split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter)

    def add(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of all processes' values by name."""
        if self.count == 1:
            return dict(values)
        return dict(zip(values, self._sum(torch.tensor(list(values.values()))).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag if self.count == 1 else bool(self._sum(torch.tensor([float(flag)])).item())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def _sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values


ALONE = Processes()


def launched_count() -> int:
    """How many processes this one was launched with, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched(device: str) -> Processes:
    """All processes of this launch, or this one alone. device: of a single process; "cuda" gives each its own card."""
    if launched_count() == 1:
        return Processes(device=device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    own = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    return Processes(dist.get_rank(), launched_count(), own)
