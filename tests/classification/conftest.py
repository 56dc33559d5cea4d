import pytest

from clora_core.classification.vision import Vision, open_vision


@pytest.fixture(scope="package")
def vision() -> Vision:
    pytest.importorskip("transformers")
    return open_vision("starter")
