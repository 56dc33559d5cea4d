"""An attachment computes Δ·x, on several devices at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clora_core.model.attachment import Attachment
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection

DTYPES = (torch.float32, torch.float64)  # in place of two devices: a copy for one cannot serve the other
PROJECTION = Projection("a", "key", (6, 8))


@pytest.mark.parametrize("dense", [False, True])
def test_threads_do_not_use_each_others_copies(dense: bool):
    rng = torch.Generator().manual_seed(0)
    delta = LowRank(torch.randn(6, 2, generator=rng), torch.randn(2, 8, generator=rng))
    attachment = Attachment({PROJECTION: delta.dense() if dense else delta})
    states = torch.randn(3, 8, generator=rng)

    def worst(dtype: torch.dtype) -> float:
        with torch.inference_mode():
            expected = (states @ delta.down.T @ delta.up.T).to(dtype)
            moved = (attachment.moved(PROJECTION, states.to(dtype)) for _ in range(2000))
            return max(float((one - expected).abs().max()) for one in moved)

    with ThreadPoolExecutor(len(DTYPES)) as threads:
        assert max(threads.map(worst, DTYPES)) < 1e-5


def test_updates_of_a_trained_delta_take_effect_at_once():
    delta = LowRank(torch.ones(6, 1, requires_grad=True), torch.ones(1, 8))
    attachment, x = Attachment({PROJECTION: delta}), torch.ones(1, 8)
    assert torch.equal(attachment.moved(PROJECTION, x.half()), torch.full((1, 6), 8.0).half())
    with torch.no_grad():
        delta.up.mul_(2)
    assert torch.equal(attachment.moved(PROJECTION, x.half()), torch.full((1, 6), 16.0).half())
