"""A small untrained model for every test that needs one."""

import pytest

from clora_core.base_diffusers import DiffusersBase

from .small import small_base


@pytest.fixture(scope="session")
def base() -> DiffusersBase:
    """One for all tests: the engine promises to leave it as it is, and the tests of `learn` hold it to that."""
    return small_base()
