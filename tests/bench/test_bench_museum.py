"""`bench museum` on small museums."""

import json
import sys

import pytest
import torch

from clora_core.bench.museums import AGAINST, cost_of
from clora_core.cli import main


def test_every_operation_is_compared_with_its_naive_way(tmp_path, capsys):
    report = tmp_path / "museum.json"
    assert main(["bench", "museum", "--exhibits", "1", "3", "--rank", "1", "--rounds", "1", "--json", str(report)]) == 0
    measured = json.loads(report.read_text())
    assert [row["exhibits"] for row in measured["museums"]] == [1, 3]
    for row in measured["museums"]:
        assert row["bytes"] > 4 * row["exhibits"] * 32 * 320
        for name in AGAINST:
            assert row[name]["seconds"] > 0 and row[name]["ratio"] > 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("1 ", "3 "))]) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_memory_that_work_takes_and_gives_back_is_counted():
    def work() -> None:
        for _ in range(30):
            torch.ones(8 * 2**20)

    cost = cost_of(work, 1)
    assert cost.peak_bytes is not None
    assert 30 * 2**20 < cost.peak_bytes < 100 * 2**20
    less = cost_of(lambda: None, 1).peak_bytes
    assert less is not None and less < 2**20


def test_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "museum", "--help"])
    assert stopped.value.code == 0 and "against" in capsys.readouterr().out
