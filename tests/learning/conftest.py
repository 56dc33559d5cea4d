"""What all tests of learning share."""

from functools import partial

import pytest

from clora_core.method.regularizers import elastic_weights
from clora_core.model import sampling


@pytest.fixture(autouse=True)
def quick_fisher_information(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few pictures and sampling steps: how good it is, tests/method/test_elastic_weights.py asks."""
    for name, value in (("pictures", 2), ("draws", 4)):
        monkeypatch.setitem(elastic_weights.fisher_information.__kwdefaults__, name, value)
    monkeypatch.setattr(sampling, "Sampling", partial(sampling.Sampling, 2))
