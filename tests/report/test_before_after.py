"""Before and after: an earlier exhibit is sampled with the museum of its time, and with the whole museum."""

import dataclasses

import pytest
import torch

from clora_core.model.base import Base
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Museum, viewing
from clora_core.report.before_after import MOST, before_and_after
from tests.small import LATENT_SHAPE

from .test_report import exhibit, museum

SAMPLING = Sampling(steps=2, guidance=2.0)


def drawn(base: Base, museum: Museum, word: str) -> torch.Tensor:
    with viewing(base, museum.dense(), museum.gated):
        return sample(base, [f"a photo of {word}"], museum.tokens, SAMPLING, latent_shape=LATENT_SHAPE)[0]


def test_each_exhibit_is_sampled_with_the_museum_then_and_now(base: Base):
    whole = museum(base, *(exhibit(base, word, seed=seed) for seed, word in enumerate(("<a>", "<b>", "<c>"))))
    whole = dataclasses.replace(
        whole, exhibits=(dataclasses.replace(whole.exhibits[0], thumbnail=b"jpeg"), *whole.exhibits[1:])
    )
    heard: list[tuple[int, int]] = []
    rows = before_and_after(base, whole, SAMPLING, latent_shape=LATENT_SHAPE, report=lambda *done: heard.append(done))
    assert [(row.word, row.real) for row in rows] == [("<a>", b"jpeg"), ("<b>", b""), ("<c>", b"")]
    for place, row in enumerate(rows):
        early = dataclasses.replace(whole, exhibits=whole.exhibits[: place + 1])
        assert torch.equal(row.then, drawn(base, early, row.word)) and torch.equal(
            row.now, drawn(base, whole, row.word)
        )
    assert not torch.equal(rows[0].then, rows[0].now) and rows[2].then is rows[2].now
    assert heard == [(done, 10) for done in range(1, 11)]  # two pictures of two exhibits, one of the last


@pytest.mark.parametrize("count", [MOST + 1, 4 * MOST])
def test_number_of_exhibits_is_limited(base: Base, count: int):
    whole = museum(base, *(exhibit(base, f"<w{number}>", seed=number) for number in range(count)))
    quick = Sampling(steps=1)
    rows = before_and_after(base, whole, quick, latent_shape=LATENT_SHAPE, report=lambda done, of: None)
    assert [row.word for row in rows][:: MOST - 1] == ["<w0>", f"<w{count - 1}>"] and len(rows) == MOST
