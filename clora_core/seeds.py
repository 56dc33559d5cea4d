"""Random generators that only depend on named numbers, never on what ran before."""

import hashlib

import torch


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator for this sequence of numbers and names, such as ("noise", seed, step)."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
