"""Second moments: what counts how much, and sketches that are right on average."""

from dataclasses import replace

import pytest
import torch

from clora_core.bench.small_transformers import open_small
from clora_core.model import moments
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank, Sketch, mean_square
from clora_core.model.moments import _mean, _Sum, preserved_moments


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


def test_in_earlier_prompts_the_word_weighs_as_much_as_all_other_text():
    base = open_small("cosmos-predict2")
    base.family = replace(base.family, captions=base.family.captions[:3])
    (encoder,) = base.vocabulary()
    rng = torch.Generator().manual_seed(0)
    token = ConceptToken("<old>", {encoder: torch.randn(1, 2, base.family.text_width, generator=rng)})
    projection, slot = next(iter(base.slots.items()))
    heard: list[torch.Tensor] = []
    with slot.module.register_forward_hook(lambda module, x, y: heard.append(x[0][0])):
        found, _ = preserved_moments(base, ["a photo of <old>"], [token])
    *everyday, earlier = heard
    at_word = base.encode_prompts(["a photo of <old>"], [token]).places["<old>"][0]
    assert at_word.sum() == 2 and len(everyday) == 3

    def moment(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.outer(row, row) for row in rows]).mean(0)

    expected = moment(torch.cat(everyday)) / 2 + moment(earlier[at_word]) / 4 + moment(earlier[~at_word]) / 4
    torch.testing.assert_close(found[projection], expected, rtol=1e-4, atol=1e-6)
