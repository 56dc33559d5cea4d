"""What a task learns, against plain copies of the network and plain formulas."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clora_core.classification.classify import class_logits, reading
from clora_core.classification.heads import (
    logits,
    random_rows,
)
from clora_core.classification.learn import TaskLearning
from clora_core.classification.museum import TaskMuseum
from clora_core.classification.recipe import METHODS, TaskRecipe
from clora_core.classification.vision import Vision, attention_projections
from clora_core.errors import RecipeError
from clora_core.method.regularizers import Distillation
from tests.classification.tasks import NAMES, merged, one_task, pictures, plain_features, recipe, tensors, two_tasks


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_tasks_and_recognizes_all_classes(vision: Vision, method: str):
    museum = two_tasks(vision, method, head="lda")
    test = pictures(*NAMES, seed=1)
    with reading(vision, museum):
        guesses = class_logits(vision, museum, test.pictures).argmax(1)
    assert (guesses == test.labels).float().mean() > 0.9
    assert [bool(task.deltas) for task in museum.tasks] == {
        "frozen": [False, False],
        "first-task": [True, False],
    }.get(method, [True, True])


def test_learning_does_not_change_the_network(vision: Vision):
    before = {name: value.clone() for name, value in vision.network.state_dict().items()}
    features = vision.all_features(pictures("red").pictures)
    two_tasks(vision)
    assert all(torch.equal(before[name], value) for name, value in vision.network.state_dict().items())
    assert torch.equal(vision.all_features(pictures("red").pictures), features)


def test_the_penalty_matches_equation_3(vision: Vision):
    """The reported term, against κ · L_ref · Σ‖past ∘ Δ‖² / Σ numel · rms(past)⁴ with dense matrices."""
    first, task = one_task(vision, "sequential"), pictures("blue", "dark")
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


def test_preservation_uses_the_inputs_of_the_layers(vision: Vision):
    """The reported term, against the mean over projections of E‖Δ x‖² / E‖W x‖² on the earlier task's pictures."""
    first, old = one_task(vision, "sequential"), pictures("red", "green")
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


def test_a_task_stores_statistics_of_the_features_with_all_deltas(vision: Vision):
    museum, task = two_tasks(vision), pictures("blue", "dark")
    features = plain_features(merged(vision, museum), task.pictures)
    for label in range(2):
        own = features[task.labels == label]
        torch.testing.assert_close(museum.tasks[1].means[label], own.mean(0), atol=1e-4, rtol=1e-4)
    apart = features - museum.tasks[1].means[task.labels]
    torch.testing.assert_close(museum.tasks[1].scatter, apart.T @ apart, atol=1e-2, rtol=1e-2)
    with reading(vision, museum):
        torch.testing.assert_close(vision.all_features(task.pictures), features, atol=1e-4, rtol=1e-4)


def test_the_same_inputs_always_give_the_same_task(vision: Vision):
    museum, task = TaskMuseum(vision.fingerprint), pictures("red", "green")
    one = TaskLearning(vision, museum, task, recipe()).run()
    torch.rand(7)
    other = TaskLearning(vision, museum, task, recipe()).run()
    first, second = (tensors(dataclasses.replace(museum, tasks=(learned,))) for learned in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_the_tasks_own_classes_are_in_the_loss(vision: Vision):
    first, task = one_task(vision, "frozen"), pictures("blue", "dark")
    losses: list[float] = []
    whole = dataclasses.replace(recipe("frozen"))
    whole = dataclasses.replace(whole, learning=dataclasses.replace(whole.learning, batch_size=len(task.labels)))
    rows: list[Tensor] = []

    def report(progress) -> None:
        losses.append(progress.loss)
        rows.append(progress.trained.rows.detach().clone())

    TaskLearning(vision, first, task, whole).run(report=report)
    own = F.cross_entropy(logits(vision.all_features(task.pictures), rows[0]), task.labels)
    assert losses[1] == pytest.approx(float(own), rel=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one(vision: Vision):
    task, museum = pictures("red", "green"), TaskMuseum(vision.fingerprint)
    learning = TaskLearning(vision, museum, task, recipe())
    states = []
    whole = learning.run(report=lambda progress: states.append(progress.snapshot()))
    again = TaskLearning(vision, museum, task, recipe()).run(resume=states[3])
    first, second = (tensors(TaskMuseum(museum.base, (task,))) for task in (whole, again))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_rank_above_the_width_is_refused(vision: Vision):
    huge = dataclasses.replace(METHODS["c-lora"].learning, rank=10_000_000)
    with pytest.raises(RecipeError, match="at most rank 192"):
        TaskLearning(vision, TaskMuseum(vision.fingerprint), pictures("red", "green"), TaskRecipe(huge))


@pytest.mark.parametrize(
    "change", [{"checkpointing": True}, {"applied": "word"}, {"regularizers": (Distillation(),)}], ids=str
)
def test_settings_without_meaning_for_classes_are_refused(change: dict[str, object]):
    with pytest.raises(RecipeError):
        TaskRecipe(dataclasses.replace(METHODS["sequential"].learning, **change))
