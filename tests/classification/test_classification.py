"""Tasks of classes over the starter's vision transformer and over random ones of every supported type."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clora_core import cli
from clora_core.classification.classify import accuracies, answers, classified, reading
from clora_core.classification.file import append_task, load_task_museum, save_task_museum
from clora_core.classification.heads import (
    discriminant_rows,
    drift_between,
    head_rows,
    logits,
    random_rows,
    statistics,
)
from clora_core.classification.learn import ClassPictures, TaskLearning
from clora_core.classification.museum import TaskMuseum, renamed_class, without_class
from clora_core.classification.recipe import METHODS, TaskRecipe
from clora_core.classification.vision import Vision, attention_projections, open_vision
from clora_core.errors import BaseModelError, CLoRAError, ConceptError, MuseumError, RecipeError
from clora_core.method.regularizers import Distillation
from clora_core.model.attach import attached
from clora_core.model.base import Fingerprint
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.file import load_museum
from clora_core.pictures import as_floats, to_picture

pytest.importorskip("transformers")
NAMES = ("red", "green", "blue", "dark")
COLORS = torch.tensor([[220, 40, 40], [40, 220, 40], [40, 40, 220], [30, 30, 30]])


@pytest.fixture(scope="module")
def vision() -> Vision:
    return open_vision("starter")


def pictures(*names: str, count: int = 6, seed: int = 0) -> ClassPictures:
    """Noise around one color a class, bytes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names)).repeat_interleave(count)
    colors = COLORS[[NAMES.index(name) for name in names]][labels]
    noise = torch.randint(-30, 31, (len(labels), 3, 48, 48), generator=rng)
    return ClassPictures(names, (colors[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels)


def recipe(method: str = "c-lora", head: str = "linear", **changes: object) -> TaskRecipe:
    """Small, with a linear head that starts at random: rows that start at the means leave nothing to learn here."""
    whole = METHODS[method]
    learning = dataclasses.replace(whole.learning, rank=4, batch_size=5, learning_rate=3e-3)
    return dataclasses.replace(whole, **{"epochs": 3, "learning": learning, "head": head, **changes})


def two_tasks(vision: Vision, method: str = "c-lora", head: str = "linear") -> TaskMuseum:
    museum = TaskMuseum(vision.fingerprint)
    for names in (NAMES[:2], NAMES[2:]):
        museum = museum.with_task(TaskLearning(vision, museum, pictures(*names), recipe(method, head)).run())
    return museum


def merged(vision: Vision, museum: TaskMuseum) -> torch.nn.Module:
    """A copy of the network with the museum's deltas added to its weights: what the hooks must amount to."""
    network = copy.deepcopy(vision.network)
    for projection, module in attention_projections(network).items():
        for task in museum.tasks:
            if projection in task.deltas:
                module.weight += task.deltas[projection].up @ task.deltas[projection].down
    return network


def plain_features(network: torch.nn.Module, values: Tensor) -> Tensor:
    with torch.no_grad():
        return network(pixel_values=as_floats(values)).last_hidden_state[:, 0]  # this network's mean and deviation: 0.5


def tensors(museum: TaskMuseum) -> list[Tensor]:
    values = [value for task in museum.tasks for value in (task.rows, task.means, task.scatter, task.counts)]
    return values + [
        factor for task in museum.tasks for _, d in sorted(task.deltas.items()) for factor in (d.up, d.down)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_tasks_and_knows_all_classes(vision: Vision, method: str):
    museum = two_tasks(vision, method, head="lda")
    test = pictures(*NAMES, seed=1)
    with reading(vision, museum):
        guesses = answers(vision, museum, test.pictures).argmax(1)
    assert (guesses == test.labels).float().mean() > 0.9
    assert [bool(task.deltas) for task in museum.tasks] == {
        "frozen": [False, False],
        "first-task": [True, False],
    }.get(method, [True, True])


def test_the_network_is_as_it_was(vision: Vision):
    before = {name: value.clone() for name, value in vision.network.state_dict().items()}
    features = vision.all_features(pictures("red").pictures)
    two_tasks(vision)
    assert all(torch.equal(before[name], value) for name, value in vision.network.state_dict().items())
    assert torch.equal(vision.all_features(pictures("red").pictures), features)


def test_the_penalty_is_equation_3(vision: Vision):
    """The reported term, against κ · L_ref · Σ‖past ∘ Δ‖² / Σ numel · rms(past)⁴ with dense matrices."""
    museum, task = two_tasks(vision, "sequential"), pictures("blue", "dark")
    first = dataclasses.replace(museum, tasks=museum.tasks[:1])
    terms, deltas, rows = [], [], []

    def report(progress) -> None:
        terms.append(progress.losses["self_regularization"])
        deltas.append({p: (d.up.detach().clone(), d.down.detach().clone()) for p, d in progress.trained.deltas.items()})
        rows.append(progress.trained.rows.detach().clone())

    TaskLearning(vision, first, task, recipe()).run(report=report)
    past = first.dense()
    before = plain_features(merged(vision, first), task.pictures)
    start = random_rows(2, vision.width, 0, "blue")
    reference = float(F.cross_entropy(logits(before, start), task.labels))
    scale = sum(matrix.numel() * float(matrix.square().mean()) ** 2 for matrix in past.values())
    kappa = METHODS["c-lora"].learning.regularizers[0].weight
    assert terms[0] == 0 and len(terms) == 9
    for term, moved in zip(terms[1:], deltas, strict=False):  # a loss belongs to the factors before its update
        naive = sum(float((past[p] * (up @ down)).square().sum()) for p, (up, down) in moved.items())
        assert term > 0 and term == pytest.approx(kappa * reference * naive / scale, rel=1e-3)


def test_preservation_is_measured_on_what_the_layers_read(vision: Vision):
    """The reported term, against the mean over projections of E‖Δ x‖² / E‖W x‖² on the earlier task's pictures."""
    museum, old = two_tasks(vision, "sequential"), pictures("red", "green")
    first = dataclasses.replace(museum, tasks=museum.tasks[:1])
    terms, deltas = [], []

    def report(progress) -> None:
        terms.append(progress.losses["context_preservation"])
        deltas.append({p: d.up.detach() @ d.down.detach() for p, d in progress.trained.deltas.items()})

    TaskLearning(vision, first, pictures("blue", "dark"), recipe("preservation")).run(report=report)
    network, read = merged(vision, first), {}
    modules = attention_projections(network)
    for projection, module in modules.items():
        module.register_forward_pre_hook(lambda _, inputs, place=projection: read.update({place: inputs[0]}))
    plain_features(network, old.pictures)
    shares = [
        (read[place] @ delta.T).square().mean() / (read[place] @ modules[place].weight.T).square().mean()
        for place, delta in deltas[0].items()
    ]
    weight = METHODS["preservation"].learning.regularizers[0].weight
    assert terms[1] == pytest.approx(weight * float(torch.stack(shares).mean()), rel=1e-3)


def test_a_task_keeps_the_statistics_of_the_features_with_all_deltas(vision: Vision):
    museum, task = two_tasks(vision), pictures("blue", "dark")
    features = plain_features(merged(vision, museum), task.pictures)
    for label in range(2):
        own = features[task.labels == label]
        torch.testing.assert_close(museum.tasks[1].means[label], own.mean(0), atol=1e-4, rtol=1e-4)
    apart = features - museum.tasks[1].means[task.labels]
    torch.testing.assert_close(museum.tasks[1].scatter, apart.T @ apart, atol=1e-2, rtol=1e-2)
    with reading(vision, museum):
        torch.testing.assert_close(vision.all_features(task.pictures), features, atol=1e-4, rtol=1e-4)


def test_the_same_inputs_give_the_same_task_whatever_ran_before(vision: Vision):
    museum, task = TaskMuseum(vision.fingerprint), pictures("red", "green")
    one = TaskLearning(vision, museum, task, recipe()).run()
    torch.rand(7)
    other = TaskLearning(vision, museum, task, recipe()).run()
    first, second = (tensors(dataclasses.replace(museum, tasks=(learned,))) for learned in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_the_tasks_own_classes_are_in_the_loss(vision: Vision):
    museum = two_tasks(vision, "frozen")
    task = pictures("blue", "dark")
    losses: list[float] = []
    first = dataclasses.replace(museum, tasks=museum.tasks[:1])
    whole = dataclasses.replace(recipe("frozen"))
    whole = dataclasses.replace(whole, learning=dataclasses.replace(whole.learning, batch_size=len(task.labels)))
    rows: list[Tensor] = []

    def report(progress) -> None:
        losses.append(progress.loss)
        rows.append(progress.trained.rows.detach().clone())

    TaskLearning(vision, first, task, whole).run(report=report)
    own = F.cross_entropy(logits(vision.all_features(task.pictures), rows[0]), task.labels)
    assert losses[1] == pytest.approx(float(own), rel=1e-4)


def test_resumed_is_uninterrupted(vision: Vision):
    task, museum = pictures("red", "green"), TaskMuseum(vision.fingerprint)
    learning = TaskLearning(vision, museum, task, recipe())
    states = []
    whole = learning.run(report=lambda progress: states.append(progress.snapshot()))
    again = TaskLearning(vision, museum, task, recipe()).run(resume=states[3])
    first, second = (tensors(TaskMuseum(museum.base, (task,))) for task in (whole, again))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_museum_comes_back_bit_for_bit(vision: Vision, tmp_path: Path):
    museum = two_tasks(vision)
    path = save_task_museum(museum, tmp_path / "m.safetensors")
    back = load_task_museum(path)
    assert back.classes == museum.classes and back.base == museum.base
    assert all(torch.equal(one, other) for one, other in zip(tensors(museum), tensors(back), strict=True))
    assert back.tasks[1].recipe == museum.tasks[1].recipe
    assert torch.equal(back.tasks[1].drift, museum.tasks[1].drift)
    test = pictures(*NAMES, seed=2).pictures
    assert classified(vision, back, test) == classified(vision, museum, test)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused(vision: Vision, tmp_path: Path, seed: int, saved: bytes):
    content = bytearray(saved)
    place = int(torch.randint(8, len(content), (), generator=torch.Generator().manual_seed(seed)))
    content[place] ^= 1 << seed % 8
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(MuseumError):
        load_task_museum(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def saved(vision: Vision, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_task_museum(two_tasks(vision), tmp_path_factory.mktemp("m") / "m.safetensors").read_bytes()


def test_the_other_kind_of_museum_is_named(vision: Vision, tmp_path: Path, saved: bytes):
    (tmp_path / "m.safetensors").write_bytes(saved)
    with pytest.raises(MuseumError, match=r"a museum of classes.*not a museum of concepts"):
        load_museum(tmp_path / "m.safetensors")


def test_classes_are_renamed_and_removed(vision: Vision):
    museum = two_tasks(vision, head="lda")
    fewer = without_class(renamed_class(museum, "red", "rot"), "green")
    assert fewer.classes == ("rot", "blue", "dark")
    assert torch.equal(head_rows(fewer, "linear"), head_rows(museum, "linear")[[0, 2, 3]])
    assert [verdict.classes[0] for verdict in classified(vision, fewer, pictures("red", seed=4).pictures)] == [
        "rot"
    ] * 6
    with pytest.raises(MuseumError, match="twice"):
        renamed_class(museum, "red", "blue")
    with pytest.raises(MuseumError, match="no class 'gold'"):
        without_class(museum, "gold")
    with pytest.raises(ConceptError, match="already has the class 'green'"):
        TaskLearning(vision, museum, pictures("red", "green"), recipe())


def test_discriminant_analysis_is_the_gaussian_posterior():
    """Against log-densities with the covariance that torch itself inverts."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(8000)
    mixing = torch.eye(5) + 0.2 * torch.randn(5, 5, generator=rng)
    features = torch.randn(24_000, 5, generator=rng) @ mixing + labels[:, None]
    means, counts, scatter = statistics(features, labels, 3)
    assert counts.tolist() == [8000, 8000, 8000]
    rows = discriminant_rows(means, scatter, 24_000)
    covariance = scatter / (24_000 - 3)
    densities = torch.stack(
        [torch.distributions.MultivariateNormal(mean, covariance).log_prob(features.double()) for mean in means], dim=1
    )
    # with so many samples hardly anything is shrunk
    torch.testing.assert_close(logits(features, rows).softmax(1).double(), densities.softmax(1), atol=0.02, rtol=0)


def test_means_follow_a_linear_drift(vision: Vision):
    rng = torch.Generator().manual_seed(1)
    before = torch.randn(500, 8, generator=rng)
    change = torch.eye(8) + 0.1 * torch.randn(8, 8, generator=rng)
    torch.testing.assert_close(drift_between(before, before @ change, ridge=1e-6), change, atol=1e-4, rtol=1e-4)
    assert torch.equal(drift_between(before, before), torch.eye(8))
    museum = two_tasks(vision, "sequential")
    width = vision.width
    drift = torch.eye(width) + 0.05 * torch.randn(width, width, generator=rng)
    first, second = museum.tasks[0], dataclasses.replace(museum.tasks[1], drift=drift)
    rows = head_rows(dataclasses.replace(museum, tasks=(first, second)), "means")
    means = torch.cat([first.means @ drift, second.means])
    spread = ((drift.T @ first.scatter @ drift).trace() + second.scatter.trace()) / 24
    torch.testing.assert_close(rows[:, :-1], 10 * means / spread, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows[:, -1], -5 * means.square().sum(1) / spread, rtol=1e-3, atol=1e-3)


def test_accuracies_are_counted_one_by_one(vision: Vision):
    museum = two_tasks(vision, "frozen")
    rng = torch.Generator().manual_seed(2)
    truth = [NAMES[int(place)] for place in torch.randint(4, (60,), generator=rng)]
    values = torch.randn(60, 4, generator=rng)
    result = accuracies(museum, values, truth)
    for number, own in enumerate((NAMES[:2], NAMES[2:])):
        hits, local = [], []
        for row, name in zip(values.tolist(), truth, strict=True):
            if name in own:
                hits.append(NAMES[row.index(max(row))] == name)
                among = {other: row[NAMES.index(other)] for other in own}
                local.append(max(among, key=lambda other: among[other]) == name)
        assert result.tasks[number] == pytest.approx(sum(hits) / len(hits))
        assert result.within[number] == pytest.approx(sum(local) / len(local))
    assert sum(map(sum, (row.values() for row in result.confusion.values()))) == 60


def test_a_museum_over_another_network_is_refused(vision: Vision):
    museum = dataclasses.replace(two_tasks(vision, "frozen"), base=Fingerprint("vision", "0" * 64))
    with pytest.raises(BaseModelError, match="was made over 'vision · 00000000'"):
        classified(vision, museum, pictures("red").pictures)


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "clip"])
def test_folders_of_transformers_open_and_learn(kind: str, tmp_path: Path):
    import transformers as t

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    model = {
        "vit": lambda: t.ViTModel(t.ViTConfig(**small)),
        "deit": lambda: t.DeiTModel(t.DeiTConfig(**small)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**small)),
        "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**small)),
    }[kind]()
    model.save_pretrained(tmp_path)
    base = open_vision(tmp_path)
    assert (base.width, base.side, len(base.modules)) == (32, 32, 6)
    task = pictures("red", "green")
    task = dataclasses.replace(task, pictures=task.pictures[..., :32, :32])
    museum = TaskMuseum(base.fingerprint).with_task(
        TaskLearning(base, TaskMuseum(base.fingerprint), task, recipe(head="linear")).run()
    )
    with torch.no_grad(), attached(base, museum.dense()):
        moved = base.features(as_floats(task.pictures))
    assert not torch.equal(moved, base.features(as_floats(task.pictures)))
    again = open_vision(tmp_path)
    assert again.fingerprint == base.fingerprint and museum.check_over(again) is None


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"config\.json"):
        open_vision(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BaseModelError, match="'bert'"):
        open_vision(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CLoRAError):
        open_vision(tmp_path)


def test_a_museum_that_lies_about_its_shapes_is_refused_before_anything_is_computed(vision: Vision, tmp_path: Path):
    """The factors would fit in a file; their product would not fit in memory."""
    museum = two_tasks(vision, "frozen")
    huge = Projection("layers.0.query", "query", (10**6, 10**6))
    liar = dataclasses.replace(museum.tasks[0], deltas={huge: LowRank(torch.ones(10**6, 1), torch.ones(1, 10**6))})
    path = save_task_museum(dataclasses.replace(museum, tasks=(liar,)), tmp_path / "m.safetensors")
    with pytest.raises(BaseModelError, match=r"no projection 'layers\.0\.query'"):
        classified(vision, load_task_museum(path), pictures("red").pictures)


def test_what_another_program_adds_meanwhile_stays(vision: Vision, tmp_path: Path):
    museum, path = two_tasks(vision, "frozen"), tmp_path / "m.safetensors"
    append_task(museum.tasks[0], path, base=vision)
    append_task(museum.tasks[1], path, base=vision)  # learned over a file that did not have the first yet
    assert load_task_museum(path).classes == museum.classes
    with pytest.raises(MuseumError, match="twice"):
        append_task(museum.tasks[1], path, base=vision)
    with pytest.raises(MuseumError):
        save_task_museum(museum, path)  # nobody read the file before
    assert load_task_museum(path).classes == museum.classes


@pytest.mark.parametrize(
    "change", [{"checkpointing": True}, {"applied": "word"}, {"regularizers": (Distillation(),)}], ids=str
)
def test_what_has_no_meaning_for_classes_is_refused(change: dict[str, object]):
    with pytest.raises(RecipeError):
        TaskRecipe(dataclasses.replace(METHODS["sequential"].learning, **change))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for part, names, seed in (("a", NAMES[:2], 0), ("b", NAMES[2:], 0), ("t", NAMES, 5)):
        task = pictures(*names, count=3, seed=seed)
        for number, (picture, label) in enumerate(zip(task.pictures, task.labels.tolist(), strict=True)):
            folder = tmp_path / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_picture(as_floats(picture)).save(folder / f"{number}.png")
    museum = str(tmp_path / "shop.safetensors")
    (tmp_path / "a" / "red" / "Thumbs.db").write_text("")
    for part in "ab":
        assert (
            cli.main(["classify", "learn", "--museum", museum, "--classes", str(tmp_path / part), "--epochs", "2"]) == 0
        )
    assert "Thumbs.db left out" in capsys.readouterr().out
    confusion = tmp_path / "confusion.png"
    assert cli.main(["classify", "test", "--museum", museum, str(tmp_path / "t"), "--out", str(confusion)]) == 0
    assert "mean of the classes: 100.0%" in capsys.readouterr().out and confusion.exists()
    table = tmp_path / "view.json"
    assert cli.main(["classify", "view", "--museum", museum, str(tmp_path / "t" / "blue"), "--json", str(table)]) == 0
    assert [row["classes"][0] for row in json.loads(table.read_text())] == ["blue"] * 3
    assert cli.main(["classify", "edit", museum, "--rename", "blue", "azure"]) == 0
    assert cli.main(["classify", "show", museum]) == 0
    assert "azure, dark" in capsys.readouterr().out
    assert cli.main(["classify", "learn", "--museum", museum, "--classes", str(tmp_path / "a")]) == 1
    assert "already has the class" in capsys.readouterr().err
