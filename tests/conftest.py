"""What all tests share: a small untrained model, and how pytest-xdist (`-n2`) runs them side by side."""

import os
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file share its fixtures, so one process runs all of them; files start in their usual order."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def base() -> Any:
    """One for all tests. The engine must not change it, which the tests of `learn` check."""
    from tests.small import small_base  # needs diffusers, which ComfyUI's Python may not have

    return small_base()
