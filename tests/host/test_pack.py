"""What loading the pack costs ComfyUI, and the pack's metadata."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from comfy_config.config_parser import extract_node_configuration

from .conftest import HOST
from .finding import ROOT, host_python, is_package


@pytest.fixture(scope="module")
def host() -> Path:
    assert HOST is not None
    return HOST


def run(host: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [host_python(host), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_startup_stays_fast_and_imports_no_library(host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # only a first start compiles what it imports
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    shares = []
    for _ in range(3):
        done = run(host, str(Path(__file__).with_name("pack_start.py")))
        assert done.returncode == 0, done.stderr
        start = json.loads(done.stdout.splitlines()[-1])
        shares.append(start["processor"] / start["host"])
    assert min(shares) < 0.02, shares
    assert len(start["ids"]) >= 8 and all(id.startswith("CLoRA_") for id in start["ids"])
    assert {name.partition(".")[0] for name in start["modules"]} <= {"clora_pack"}


def test_comfyui_parses_the_registry_metadata(host: Path):
    config = extract_node_configuration(str(ROOT))
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", config.project.name) and len(config.project.name) < 100
    assert re.fullmatch(r"\d+\.\d+\.\d+", config.project.version)
    assert config.project.license.file and (ROOT / config.project.license.file).is_file()
    assert config.project.supported_os == ["OS Independent"] and config.project.supported_accelerators == []
    assert config.project.supported_comfyui_version == ">=0.3.64"
    assert config.tool_comfy.publisher_id and config.tool_comfy.display_name == "C-LoRA"
    assert config.tool_comfy.web is None  # beside WEB_DIRECTORY it would serve every script twice


def test_comfyui_has_all_requirements(host: Path):
    if is_package(host):
        pytest.skip("this ComfyUI has no requirements.txt")
    own, hosts = (names(folder / "requirements.txt") for folder in (ROOT, host))
    assert own and own <= hosts


def names(requirements: Path) -> set[str]:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return {re.split(r"[^\w-]", line, maxsplit=1)[0].lower() for line in lines if line and not line.startswith("#")}


def test_install_accepts_the_host_and_changes_nothing(host: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    before = run(host, "-m", "pip", "freeze").stdout
    done = run(host, str(ROOT / "install.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISSING" not in done.stdout
    assert is_package(host) or "present  ComfyUI" in done.stdout  # whose version stands in no file of its own
    assert run(host, "-m", "pip", "freeze").stdout == before != ""
