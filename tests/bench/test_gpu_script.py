"""The script for a graphics card, in small on the CPU."""

import json

from benchmarks.gpu import main


def test_it_checks_everything_in_small(tmp_path):
    assert main(["--small", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    lines = {line["what"]: line for line in found["lines"]}
    assert [line["holds"] for line in found["lines"] if line["must"]].count(True) == 5
    for precision in ("fp32", "bf16", "fp16"):
        assert lines[f"{precision}: seconds per step"]["measured"] > 0
    assert "plain C-LoRA, 2 earlier" in [row["side"] for row in found["steps"][0]["sides"]]
    assert "interrupted and resumed" in (tmp_path / "gpu.md").read_text()
