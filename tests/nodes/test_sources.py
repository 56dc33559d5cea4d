"""Which files may import what, and the pack's metadata."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .bare import ROOT

HOST = {"comfy", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution", "app", "utils"}
MODEL_LIBRARIES = {"diffusers", "peft", "transformers", "tokenizers", "accelerate"}
FILES = sorted((ROOT / "nodes").rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names as they are; relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_the_host_folder_knows_comfyui(path: Path):
    known = {name.partition(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert not known & MODEL_LIBRARIES
    if path.parent.name != "host":
        assert not known & HOST
    else:
        assert "comfy_api" not in known


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_pack_uses_relative_imports(path: Path):
    """Inside ComfyUI it has another name than here, and `nodes` is ComfyUI's own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.partition(".")[0] for name in imports(tree)} & {"clora_core", "nodes"}


def test_the_entry_point_imports_nothing_by_itself():
    script = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r});"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "assert set(sys.modules) == before; assert module.WEB_DIRECTORY == './web'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_installed_package_has_no_module_named_nodes():
    toml = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^include = \["clora_core\*"\]', toml, re.MULTILINE)


def test_requirements_are_unpinned_and_light():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert set(wanted) <= {"einops", "numpy", "pillow", "safetensors"}


def test_registry_metadata_is_complete():
    toml = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = toml.partition("[tool.comfy]")[2].partition("\n[")[0]
    entries = dict(re.findall(r'^([\w-]+) = "([^"]*)"', section, re.MULTILINE))
    assert entries["PublisherId"] and entries["DisplayName"] == "C-LoRA" and "requires-comfyui" in entries
    assert "web" not in entries  # beside WEB_DIRECTORY it would serve every script twice


def test_install_reports_a_complete_environment():
    answer = run_install()
    assert answer.returncode == 0, answer.stdout
    assert "present  torch" in answer.stdout and "Nothing was installed" in answer.stdout


def test_install_reports_missing_packages():
    answer = run_install("-S")  # a Python without its packages
    assert answer.returncode == 1
    assert "MISSING  torch" in answer.stdout and "MISSING  safetensors" in answer.stdout


def test_install_reports_an_old_comfyui(tmp_path, monkeypatch):
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.9"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    answer = run_install()
    assert answer.returncode == 1 and "MISSING  ComfyUI 0.3.64 or newer" in answer.stdout


def run_install(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, str(ROOT / "install.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
