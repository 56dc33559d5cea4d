"""A small untrained model for every test of the engine that needs one."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def base() -> Any:
    """One for all tests: the engine promises to leave it as it is, and the tests of `learn` hold it to that."""
    from tests.small import small_base  # needs diffusers, which ComfyUI's Python may not have

    return small_base()
