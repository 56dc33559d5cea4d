"""`bench classification`: its protocol counted by hand, and each baseline against its equation."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clora_core import cli
from clora_core.bench.class_methods import (
    COMPARED,
    DecayedDeltas,
    Distilled,
    ElasticDeltas,
    InputSpaces,
    Memory,
    WholeNetwork,
    learn_task,
)
from clora_core.bench.classification import class_order, held_out, of_classes, read_list
from clora_core.classification.classify import task_accuracies
from clora_core.classification.heads import logits, random_rows
from clora_core.classification.museum import TaskMuseum
from clora_core.classification.recipe import METHODS
from clora_core.classification.vision import Vision, attention_projections, layer_path, open_vision
from clora_core.errors import ConceptError
from clora_core.pictures import as_floats, to_picture
from tests.classification.tasks import NAMES, pictures, recipe

FIRST, SECOND = pictures(*NAMES[:2]), pictures(*NAMES[2:])


@pytest.fixture(scope="module")
def vision() -> Vision:
    pytest.importorskip("transformers")
    return open_vision("starter")


def after_first(vision: Vision, kind: type, memory: Memory, weight: float = 1.0):
    """A baseline's learning of the second task, and the museum and memory that it has of the first."""
    empty = TaskMuseum(vision.fingerprint)
    learning = kind(vision, empty, FIRST, recipe("sequential"), weight=weight, memory=memory, tasks=2)
    task = learning.run()
    learning.finish(task)
    museum = empty.with_task(task)
    return kind(vision, museum, SECOND, recipe("sequential"), weight=weight, memory=memory, tasks=2)


def test_shares_are_counted_one_by_one():
    rng = torch.Generator().manual_seed(0)
    values, labels = torch.randn(40, 5, generator=rng), torch.randint(5, (40,), generator=rng)
    everywhere, within = task_accuracies(values, labels, [2, 3])
    for task, own in enumerate(([0, 1], [2, 3, 4])):
        rows = [(row, label) for row, label in zip(values.tolist(), labels.tolist(), strict=True) if label in own]
        hits = sum(max(range(5), key=row.__getitem__) == label for row, label in rows)
        local = sum(max(own, key=row.__getitem__) == label for row, label in rows)
        assert everywhere[task] == pytest.approx(hits / len(rows)) and within[task] == pytest.approx(local / len(rows))


def test_the_order_of_classes_is_the_reference_codes():
    names = [f"c{number}" for number in range(9)]
    assert class_order(names, 0) == names
    shuffled = list(names)
    random.seed(3)
    random.shuffle(shuffled)
    assert class_order(names, 3) == shuffled


def test_a_search_sees_no_test_picture_and_every_fourth_training_picture_tests():
    task = pictures("red", "green", count=9)
    train, test = held_out(task)
    assert train.classes == test.classes == ("red", "green")
    assert torch.bincount(train.labels).tolist() == [7, 7] and torch.bincount(test.labels).tolist() == [2, 2]
    red = task.pictures[task.labels == 0]
    assert torch.equal(test.pictures[test.labels == 0], red[[3, 7]])


def test_chosen_classes_have_labels_in_their_order():
    part = of_classes(pictures(*NAMES, count=2), ["blue", "red"])
    assert part.labels.tolist() == [1, 1, 0, 0]
    assert part.pictures[part.labels == 0].float().mean((0, 2, 3)).argmax() == 2


def test_distillation_is_its_equation(vision: Vision):
    learning = after_first(vision, Distilled, Memory(), weight=0.7)
    rows = learning.museum.tasks[0].rows
    before = torch.randn(len(SECOND.labels), vision.width, generator=torch.Generator().manual_seed(1))
    term = learning.terms(None, before)["distillation"]
    step = type("Step", (), {"chosen": torch.tensor([1, 4]), "features": before[[1, 4]] + 0.5})()
    old, new = (logits(f, rows).div(2).softmax(1) for f in (before[[1, 4]], step.features))
    naive = (old * (old.log() - new.log())).sum(1).mean() * 4 * 0.7
    torch.testing.assert_close(term(step), naive)


def test_fisher_information_is_the_mean_squared_gradient_of_the_weights(vision: Vision):
    """Against autograd on a network whose own weights hold the delta."""
    memory = Memory()
    learning = after_first(vision, ElasticDeltas, memory, weight=3.0)
    task = learning.museum.tasks[0]
    network = open_vision("starter").network
    modules = attention_projections(network)
    for projection, module in modules.items():
        module.weight.data += task.deltas[projection].dense()
        module.weight.requires_grad_(True)
    projection = next(iter(modules))
    expected = torch.zeros(projection.shape)
    batch = as_floats(FIRST.pictures)  # fewer than a batch, so one gradient
    features = network(pixel_values=batch).last_hidden_state[:, 0]
    F.cross_entropy(logits(features, task.rows), FIRST.labels).backward()
    expected = modules[projection].weight.grad.square()
    torch.testing.assert_close(memory.fisher[projection], expected, rtol=1e-2, atol=1e-3 * float(expected.max()))
    step = type("Step", (), {"deltas": task.deltas, "zero": lambda self: torch.zeros(())})()
    naive = 1.5 * sum((memory.fisher[p] * task.deltas[p].dense().square()).sum() for p in modules)
    torch.testing.assert_close(learning.terms(None, None)["elastic_weights"](step), naive, rtol=1e-4, atol=0)


def test_beside_a_large_penalty_the_head_learns_as_over_frozen_features(vision: Vision):
    rows = {}
    for name, weight in (("frozen", 3e-3), ("ewc-lora", 1e12)):
        method, memory, museum = COMPARED[name], Memory(), TaskMuseum(vision.fingerprint)
        for task in (FIRST, SECOND):
            loop = replace(method.recipe(weight).learning, rank=4, batch_size=5)
            changes = {"learning": loop, "epochs": 3, "head": "linear", "tasks": 2}
            museum = museum.with_task(learn_task(method, weight, vision, museum, task, memory, **changes))
        rows[name] = museum.tasks[1].rows
    moved = (rows["frozen"] - random_rows(2, vision.width, 0, SECOND.classes[0])).norm()
    assert (rows["frozen"] - rows["ewc-lora"]).norm() < moved / 4


def test_inflora_starts_outside_of_the_old_tasks_inputs(vision: Vision):
    memory = Memory()
    learning = after_first(vision, InputSpaces, memory, weight=0.9)
    moments = learning.museum.tasks[0].inputs
    for layer, space in memory.spaces.items():
        torch.testing.assert_close(space.T @ space, torch.eye(space.shape[1], dtype=torch.float64))
        held = (space.T @ moments[layer].double() @ space).trace() / moments[layer].double().trace()
        assert held >= 0.9
    trained = learning.start(vision.all_features(SECOND.pictures))
    assert "head.rows" in trained.parameters() and not [name for name in trained.parameters() if "down" in name]
    for projection, delta in trained.deltas.items():
        down = delta.down.double()
        assert (down @ memory.spaces[layer_path(projection)]).abs().max() < 1e-5
        torch.testing.assert_close(down @ down.T, torch.eye(len(down), dtype=torch.float64) / 3, atol=1e-5, rtol=0)


def test_decay_is_the_squared_norm_of_the_delta_after_the_first_task(vision: Vision):
    learning = after_first(vision, DecayedDeltas, Memory(), weight=0.5)
    step = type("Step", (), {"deltas": learning.museum.tasks[0].deltas})()
    naive = 0.5 * sum(delta.dense().square().sum() for delta in step.deltas.values())
    torch.testing.assert_close(learning.terms(None, None)["decay"](step), naive)
    empty = TaskMuseum(vision.fingerprint)
    assert DecayedDeltas(vision, empty, FIRST, recipe("sequential"), weight=0.5).terms(None, None) == {}


def test_ewc_pulls_all_weights_back_and_fine_tuning_does_not():
    vision = open_vision("starter")
    before = {name: value.clone() for name, value in vision.network.named_parameters()}
    memory = Memory()
    learning = after_first(vision, WholeNetwork, memory, weight=2.0)
    now = dict(vision.network.named_parameters())
    assert any(not torch.equal(before[name], now[name]) for name in before)
    learning.start(vision.all_features(SECOND.pictures))
    name = next(iter(memory.fisher))
    term = learning.terms(None, None)["elastic_weights"]
    step = type("Step", (), {"zero": lambda self: torch.zeros(())})()
    assert term(step) == 0
    with torch.no_grad():
        now[name] += 0.1
    torch.testing.assert_close(term(step), memory.fisher[name].sum() * 0.01, rtol=1e-3, atol=0)
    assert WholeNetwork(vision, learning.museum, SECOND, recipe("sequential"), memory=memory).terms(None, None) == {}


@pytest.mark.parametrize("name", COMPARED)
def test_every_method_learns_two_tasks(name: str):
    vision, method, memory = open_vision("starter"), COMPARED[name], Memory()
    museum = TaskMuseum(vision.fingerprint)
    for task in [pictures(*NAMES)] if method.joint else [FIRST, SECOND]:
        loop = method.recipe(method.weight).learning
        changes = {"learning": loop, "epochs": 2, "head": "imprint", "tasks": 2}
        museum = museum.with_task(learn_task(method, method.weight, vision, museum, task, memory, **changes))
    assert museum.classes == NAMES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, seed in (("train", 0), ("test", 1)):
        task = pictures(*NAMES, count=4, seed=seed)
        for number, (picture, label) in enumerate(zip(task.pictures, task.labels.tolist(), strict=True)):
            home = tmp_path / part / NAMES[label]
            home.mkdir(parents=True, exist_ok=True)
            to_picture(as_floats(picture)).save(home / f"{number}.png")
    return tmp_path


def test_the_command_writes_a_table_and_repeats_no_run(folder: Path, capsys: pytest.CaptureFixture[str]):
    command = ["bench", "classification", "--pictures", str(folder), "--methods", "frozen", "c-lora", "joint"]
    command += [
        "--tasks",
        "2",
        "--seeds",
        "0",
        "1",
        "--heads",
        "imprint",
        "--epochs",
        "1",
        "--out",
        str(folder / "out"),
    ]
    assert cli.main(command) == 0
    table = (folder / "out/classification.md").read_text()
    assert "4 classes, 2 tasks, imprint head" in table
    assert "| c-lora | 2 | 1 ± 0 |  |" in table and "| joint | 2 | 1 ± 0 | +0 ± 0 |" in table
    runs = {path: path.stat().st_mtime_ns for path in (folder / "out/runs").iterdir()}
    assert len(runs) == 6
    assert cli.main(command) == 0
    assert runs == {path: path.stat().st_mtime_ns for path in (folder / "out/runs").iterdir()}
    elsewhere = [*command[:-1], str(folder / "again"), "--resume", str(folder / "out/classification.json")]
    assert cli.main(elsewhere) == 0 and not list((folder / "again/runs").iterdir())
    assert (folder / "again/classification.md").read_text() == table
    assert cli.main([*command[:4], "--search", "--methods", "frozen", "--tasks", "2", "--out", str(folder / "s")]) == 0
    assert "**" in (folder / "s/classification.md").read_text()
    capsys.readouterr()


def test_the_reference_codes_lists_are_read(folder: Path, vision: Vision, capsys: pytest.CaptureFixture[str]):
    """YAML with `data`, paths …/<class>/<file>, and `targets`, numbers, as for ImageNet-R."""
    files = [f"data/imagenet-r/{name}/{next((folder / 'train' / name).iterdir()).name}" for name in NAMES]
    text = (
        "data:\n" + "".join(f"- {file}\n" for file in files) + "targets:\n" + "".join(f"- {n}\n" for n in (3, 1, 2, 0))
    )
    (folder / "list.yaml").write_text(text)
    task = read_list(folder / "list.yaml", folder / "train", vision)
    assert task.classes == ("dark", "green", "blue", "red") and task.labels.tolist() == [3, 1, 2, 0]
    command = ["bench", "classification", "--pictures", str(folder / "train"), "--out", str(folder / "out")]
    command += ["--lists", str(folder / "list.yaml"), str(folder / "list.yaml"), "--tasks", "2", "--heads", "linear"]
    assert cli.main([*command, "--methods", "frozen", "--seeds", "0"]) == 0
    assert "4 classes, 2 tasks, linear head" in capsys.readouterr().out
    (folder / "bad.yaml").write_text("data:\n- x/../y.png\ntargets:\n- 0\n")
    with pytest.raises(ConceptError, match="leads out"):
        read_list(folder / "bad.yaml", folder / "train", vision)
    (folder / "bad.yaml").write_text("targets:\n- 0\n")
    with pytest.raises(ConceptError, match="must have the lists"):
        read_list(folder / "bad.yaml", folder / "train", vision)


def test_the_methods_of_the_command_are_among_the_compared():
    assert METHODS.keys() <= COMPARED.keys()
