"""What the Comfy Registry gets: all that the nodes need, and little else."""

import subprocess

import pytest
from PIL import Image

from .bare import ROOT

NEEDED = (
    *("__init__.py", "install.py", "requirements.txt", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"),
    *("nodes/__init__.py", "clora_core/learning/learn.py", "clora_core/starter/weights/unet.safetensors"),
    *("web/docs/CLoRA_TrainStep.md", "locales/ja/nodeDefs.json", "example_workflows/1-three-concepts.json"),
)
LIMIT_MIB = 24  # more than half of which are the starter model's weights


def ignored(path: str) -> bool:
    """Whether .comfyignore leaves a file out. Its lines begin with /, since docs/ alone would be web/docs/ too."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(line.startswith("/") and "*" not in line for line in lines)
    return any(f"/{path}".startswith(line) if line.endswith("/") else f"/{path}" == line for line in lines)


@pytest.fixture(scope="module")
def published() -> list[str]:
    """The files that git knows or would take, less those that are ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this is no git checkout: {error}")
    return sorted(path for path in set(listed.splitlines()) if not ignored(path) and (ROOT / path).is_file())


def test_everything_the_nodes_need_is_published(published: list[str]):
    assert set(NEEDED) <= set(published)


def test_tests_benchmarks_and_document_pictures_are_not_published(published: list[str]):
    folders = {path.partition("/")[0] for path in published}
    assert not folders & {"tests", "benchmarks", "docs", "scripts", ".github", ".ci"}


def test_the_pack_stays_small(published: list[str]):
    assert sum((ROOT / path).stat().st_size for path in published) < LIMIT_MIB * 2**20


def test_icon_and_banner_have_the_shapes_of_the_registry():
    with Image.open(ROOT / "docs/icon.png") as icon, Image.open(ROOT / "docs/banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
