"""What makes results repeatable: generators that only depend on named numbers, and bytes of tensors to hash."""

import hashlib

import torch
from torch import Tensor


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator for this sequence of numbers and names, such as ("noise", seed, step)."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def bytes_of(tensor: Tensor) -> memoryview:
    """Its values in order, in the byte order of this machine."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
