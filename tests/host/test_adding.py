"""A delta beside a projection adds what it says, for several devices at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from clora_pack.clora_core.model.low_rank import LowRank
from clora_pack.nodes.host.adding import Adding
from torch import nn

DTYPES = (torch.float32, torch.float64)  # stand for devices: copies for one are of no use to the other


@pytest.mark.parametrize("rank", [1, 7])
def test_threads_do_not_take_each_others_copies(rank: int):
    rng = torch.Generator().manual_seed(0)
    module = nn.Identity()
    delta = LowRank(torch.randn(6, rank, generator=rng), torch.randn(rank, 8, generator=rng))
    adding, states = Adding(delta), torch.randn(3, 8, generator=rng)

    def worst(dtype: torch.dtype) -> float:
        with torch.inference_mode():
            given = (states.to(dtype),)
            expected = (states @ delta.down.T @ delta.up.T).to(dtype)
            added = (adding(module, given, torch.zeros(3, 6, dtype=dtype)) for _ in range(2000))
            return max(float((one - expected).abs().max()) for one in added)

    with ThreadPoolExecutor(len(DTYPES)) as threads:
        assert max(threads.map(worst, DTYPES)) < 1e-5
    adding.forget()
    assert not adding.placed
