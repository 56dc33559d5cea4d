"""Second moments as sketches: right on average, and independent for each kind of rows."""

import pytest
import torch

from clora_core.model import moments
from clora_core.model.low_rank import LowRank, Sketch, mean_square
from clora_core.model.moments import _mean, _Sum


def test_the_sketch_of_several_kinds_of_rows_has_their_mean_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(moments, "WHOLE", 0)
    rng = torch.Generator().manual_seed(0)
    kinds = [scale * torch.randn(rows, 20, generator=rng) for rows, scale in ((30, 1.0), (7, 3.0))]
    delta = LowRank(torch.randn(9, 2, generator=rng), torch.randn(2, 20, generator=rng))
    expected = sum((rows @ delta.down.T @ delta.up.T).square().sum(1).mean() for rows in kinds) / 2
    found = []
    for draw in range(40):
        sums = []
        for kind, rows in enumerate(kinds):
            sums.append(_Sum())
            for part in rows.split(5):
                sums[-1].add(part, (draw, kind))
        sketch = _mean([own.moment() for own in sums])
        assert isinstance(sketch, Sketch) and sketch.columns.shape == (20, moments.COLUMNS)
        found.append(mean_square(delta, sketch))
    assert torch.stack(found).mean().item() == pytest.approx(float(expected), rel=0.05)
    assert torch.stack(found).std().item() < 0.2 * float(expected)
