"""What all tests of learning share."""

from collections.abc import Iterator

import pytest

from tests.small import quick_fisher_information


@pytest.fixture(autouse=True)
def _quick_fisher_information() -> Iterator[None]:
    with quick_fisher_information():
        yield
