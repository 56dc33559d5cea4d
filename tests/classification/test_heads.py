"""The heads and the accuracies, against textbook formulas."""

import dataclasses

import pytest
import torch

from clora_core.classification.classify import accuracies
from clora_core.classification.heads import (
    discriminant_rows,
    drift_between,
    head_rows,
    logits,
    mean_rows,
    statistics,
)
from clora_core.classification.vision import Vision
from tests.classification.tasks import NAMES, two_tasks


def test_discriminant_analysis_matches_the_gaussian_posterior():
    """Against log-densities of torch, doubled, since the head scales the mean squared distance from 5 to 10."""
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
    # with so many samples, shrinkage is negligible
    torch.testing.assert_close(
        logits(features, rows).softmax(1).double(), (2 * densities).softmax(1), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(
    "rows_of", [lambda means, scatter, n: mean_rows(means, scatter.trace() / n), discriminant_rows]
)
def test_one_picture_per_class_gives_the_nearest_mean_in_usual_numbers(rows_of, copies: int):
    """Without any distance within classes there is no unit, and rounding must not become one."""
    rng = torch.Generator().manual_seed(2)
    features, labels = torch.randn(4, 8, generator=rng).repeat(copies, 1) / 3, torch.arange(4).repeat(copies)
    means, _, scatter = statistics(features, labels, 4)
    rows = rows_of(means, scatter, len(labels))
    assert rows.abs().max() < 1000
    near = features[:4] + 0.05 * torch.randn(4, 8, generator=rng)
    values = logits(near, rows)
    distances = torch.cdist(near.double(), means)
    assert torch.equal(values.argsort(1, descending=True), distances.argsort(1))
    assert ((shares := values.softmax(1).amax(1)) > 0.5).all() and (shares < 0.9999).all()


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


def test_every_later_drift_applies_to_earlier_tasks(vision: Vision):
    """Against the definition: each task's statistics through all later drifts, one after another."""
    rng = torch.Generator().manual_seed(3)
    two, width = two_tasks(vision, "sequential"), vision.width
    drifts = [torch.eye(width) + 0.05 * torch.randn(width, width, generator=rng) for _ in range(3)]
    tasks = [dataclasses.replace(two.tasks[n % 2], drift=drift) for n, drift in enumerate([None, *drifts[:2], None])]
    tasks = [dataclasses.replace(task, classes=(f"{n}", f"{n}+")) for n, task in enumerate(tasks)]
    means, scatter = [], torch.zeros(width, width, dtype=torch.float64)
    for place, task in enumerate(tasks):
        own, spread = task.means.double(), task.scatter.double()
        for later in tasks[place + 1 :]:
            change = torch.eye(width, dtype=torch.float64) if later.drift is None else later.drift.double()
            own, spread = own @ change, change.T @ spread @ change
        means.append(own)
        scatter += spread
    counted = sum(int(task.counts.sum()) for task in tasks)
    rows = head_rows(dataclasses.replace(two, tasks=tuple(tasks)), "lda")
    torch.testing.assert_close(rows, discriminant_rows(torch.cat(means), scatter, counted))


def test_accuracies_match_a_count_by_a_loop(vision: Vision):
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
