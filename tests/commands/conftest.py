import pytest

from clora_core.starter.subjects import pictures


@pytest.fixture
def images(tmp_path):
    """A folder of three pictures."""
    folder = tmp_path / "ada"
    folder.mkdir()
    for number, picture in enumerate(pictures("ada", 3, seed=0)):
        picture.save(folder / f"{number}.png")
    return folder
