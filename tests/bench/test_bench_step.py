"""`bench step` and its sides, on a small UNet."""

import json

import pytest
import torch

from clora_core.bench import peers, shaped_bases
from clora_core.bench.measuring import random_museum
from clora_core.bench.peers import Work, twin, with_peft
from clora_core.bench.shaped_bases import shaped_base
from clora_core.cli import main
from clora_core.learning.start import start
from clora_core.method.recipe import Recipe
from clora_core.model.concept import Concept
from clora_core.museum.museum import Museum
from clora_core.pictures import in_memory

RANK = 4


@pytest.fixture(scope="module")
def work() -> Work:
    base = shaped_base("tiny", torch.device("cpu"))
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recipe = Recipe(rank=RANK, steps=4, batch_size=2, learning_rate=1e-2)
    return Work(
        base, Concept("<bench>", in_memory(pictures)), recipe, {n: random_museum(base, n, RANK) for n in (0, 3)}
    )


def losses(work: Work, side: str) -> list[float]:
    found: list[float] = []
    work.sides(peers=True)[side](found.append)
    return found


@pytest.mark.parametrize("past", [0, 3])
def test_ours_and_the_plain_c_lora_do_the_same(work: Work, past: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "LAMBDA", 3e7)
    ours, plain = losses(work, f"c-lora, {past} earlier"), losses(work, f"plain C-LoRA, {past} earlier")
    assert len(ours) == 4 and ours == pytest.approx(plain, rel=1e-4)
    monkeypatch.setattr(peers, "LAMBDA", 0.0)
    without = losses(work, f"plain C-LoRA, {past} earlier")
    costs = [with_it / without_it - 1 for with_it, without_it in zip(plain, without, strict=True)]
    assert (max(costs) > 0.1) == (past > 0), "the penalty is too small to compare"


def test_without_a_past_all_sides_start_alike_and_the_deltas_learn_more_than_the_floor(work: Work):
    sides = ["floor", "c-lora, 0 earlier", "word-gated-onwards, 3 earlier", "peft LoRA", "plain C-LoRA, 0 earlier"]
    found = {side: losses(work, side) for side in sides}
    for side in sides:
        assert found[side][0] == pytest.approx(found["floor"][0], rel=1e-5), side
        assert side == "floor" or found[side][-1] != found["floor"][-1], side


def test_peft_trains_as_many_numbers_on_the_same_projections(work: Work):
    base = twin(work.base)
    deltas = start(work.base, [work.concept], work.recipe, Museum(work.base.fingerprint)).deltas
    factors = with_peft(base, RANK)
    assert sum(value.numel() for value in factors.values()) == sum(
        delta.up.numel() + delta.down.numel() for delta in deltas.values()
    )
    assert {name.partition(".lora_")[0] for name in factors} == {place.path for place in deltas}


def test_sides_leave_the_base_as_it_was(work: Work):
    modules, weights = dict(work.base.unet.named_modules()), dict(work.base.unet.named_parameters())
    before = {name: weight.clone() for name, weight in weights.items()}
    for side in ("peft LoRA", "plain C-LoRA, 3 earlier"):
        losses(work, side)
    assert dict(work.base.unet.named_modules()) == modules
    assert all(torch.equal(weights[name], value) for name, value in before.items())


def test_the_command_reports_times_memory_and_ratios_to_the_floor(tmp_path, capsys):
    report = tmp_path / "step.json"
    held = torch.ones(2**29)  # 2 GiB
    small = ["--shape", "tiny", "--size", "32", "--rounds", "2", "--rank", "2"]
    assert main(["bench", "step", *small, "--past", "2", "--memory", "--json", str(report)]) == 0
    floor, ours = json.loads(report.read_text())["sides"]
    assert floor["side"] == "floor" and ours["side"] == "c-lora, 2 earlier"
    for clock in ("seconds", "cpu_seconds"):
        assert floor[clock] > 0 and floor[f"{clock}_ratio"] == 1 and ours[f"{clock}_ratio"] > 0
    assert len(ours["cpu_seconds_ratios"]) == 2
    for row in (floor, ours):
        assert 0.05 < row["peak_gib"] < 2, "the memory of this process may not count"
    del held
    assert "| c-lora, 2 earlier |" in capsys.readouterr().out


def test_peers_add_the_other_sides(tmp_path):
    report = tmp_path / "step.json"
    small = ["--shape", "tiny", "--size", "32", "--rounds", "1", "--rank", "2", "--checkpointing"]
    assert main(["bench", "step", "--peers", *small, "--past", "0", "--precision", "bf16", "--json", str(report)]) == 0
    names = [row["side"] for row in json.loads(report.read_text())["sides"]]
    methods = ["c-lora", "preservation", "word-gated-onwards"]
    assert names == ["floor", *(f"{method}, 0 earlier" for method in methods), "peft LoRA", "plain C-LoRA, 0 earlier"]


def test_the_shape_of_sdxl_with_fewer_channels(tmp_path, monkeypatch: pytest.MonkeyPatch):
    fewer = {"block_out_channels": (32, 64, 64), "transformer_layers_per_block": 1, "attention_head_dim": 8}
    monkeypatch.setattr(shaped_bases, "UNETS", {"sdxl": {**shaped_bases.UNETS["sdxl"], **fewer}})
    report = tmp_path / "step.json"
    small = ["--shape", "sdxl", "--size", "64", "--rounds", "1", "--rank", "2", "--past", "1"]
    assert main(["bench", "step", *small, "--json", str(report)]) == 0
    assert len(json.loads(report.read_text())["sides"]) == 2
