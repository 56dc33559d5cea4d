"""Heads, which decide between classes: rows of a linear layer, (classes, width + 1), the last column being the bias.

    logits = f · Wᵀ + b          f: features (n, width)

A task has the statistics for all heads, so a museum can be used with any of them.
"""

import torch
from torch import Tensor

from ..seeds import seeded
from .museum import TaskMuseum
from .recipe import Head

SHARPNESS = 10.0  # of the squared distances to class means, in units of their mean within a class
ALIKE = 1e-9  # a mean squared distance within classes below this share of the means' own size is rounding


def logits(features: Tensor, rows: Tensor) -> Tensor:
    """(n, classes) for features (n, width) and rows (classes, width + 1)."""
    return features @ rows[:, :-1].T + rows[:, -1]


def statistics(features: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class means (count, width), counts (count,) and the scatter within classes (width, width), in float64."""
    features = features.double()
    counts = torch.bincount(labels, minlength=count)
    sums = torch.zeros(count, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    means = sums / counts[:, None]
    apart = features - means[labels]
    return means, counts, apart.T @ apart


def random_rows(count: int, width: int, *name: int | str) -> Tensor:
    """Uniform in ±1/√width, as in torch's linear layer and the paper's reference code."""
    return (torch.rand(count, width + 1, generator=seeded("head", *name)) * 2 - 1) / width**0.5


def mean_rows(means: Tensor, spread: float) -> Tensor:
    """The nearest mean. spread: the mean squared distance of a feature from its own class's mean. If no class has
    two different pictures, the mean square of the means stands in for it."""
    size = float(means.square().sum(1).mean())
    scale = SHARPNESS / (spread if spread > ALIKE * size else max(size, 1e-12))
    bias = -means.square().sum(1, keepdim=True) / 2
    return (torch.cat([means, bias], dim=1) * scale).float()


def discriminant_rows(means: Tensor, scatter: Tensor, count: int) -> Tensor:
    """Linear discriminant analysis: W = s Σ⁻¹ μ, b = -s μᵀ Σ⁻¹ μ / 2, Σ the covariance that all classes share.

    s makes the mean of (f - μ)ᵀ Σ⁻¹ (f - μ) within classes as large as the nearest mean has it. With the s = 1 of a
    Gaussian's posterior, the shares would be far overconfident, since Σ is known from few pictures.

    Σ is shrunk towards a multiple of the identity by the amount that Chen et al. 2010 (OAS, arXiv:0907.4698) derive
    from the number of pictures. In continual learning: Hayes and Kanan 2020 (arXiv:1909.01520).
    """
    width, samples = len(scatter), max(1, count - len(means))
    covariance = scatter / samples
    trace, squares = covariance.trace(), covariance.square().sum()
    if trace <= ALIKE * means.square().sum(1).mean():
        return mean_rows(means, 0.0)
    above = (1 - 2 / width) * squares + trace**2
    below = (samples + 1 - 2 / width) * (squares - trace**2 / width)
    shrinkage = 1.0 if below <= 0 else float((above / below).clamp(max=1))
    shrunk = (1 - shrinkage) * covariance + shrinkage * trace / width * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(shrunk)
    weight = means @ inverse * SHARPNESS / (inverse * covariance).sum()
    return torch.cat([weight, -(weight * means).sum(1, keepdim=True) / 2], dim=1).float()


def head_rows(museum: TaskMuseum, head: Head, *, corrected: bool = True) -> Tensor:
    """The rows of all classes of the museum, in order, (classes, width + 1).

    corrected: apply the drift of all later tasks to the means and the scatter of earlier ones.
    """
    if head in ("linear", "imprint"):
        return torch.cat([task.rows for task in museum.tasks])
    width = museum.tasks[0].means.shape[1]
    means, scatter = torch.zeros(0, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for task in museum.tasks:
        if corrected and task.drift is not None:  # of all that was learned before this task
            drift = task.drift.double()
            means, scatter = means @ drift, drift.T @ scatter @ drift
        means = torch.cat([means, task.means.double()])
        scatter += task.scatter.double()
    counted = sum(int(task.counts.sum()) for task in museum.tasks)
    if head == "means":
        return mean_rows(means, float(scatter.trace()) / max(1, counted))
    return discriminant_rows(means, scatter, counted)


def drift_between(before: Tensor, after: Tensor, *, ridge: float = 0.1) -> Tensor:
    """The linear map (width, width) from features before a task to features after it, regularized to the identity.

    A ridge regression of the differences on the task's own pictures, as Gomez-Villa et al. 2024 (arXiv:2407.08536)
    correct class means without earlier pictures. ridge: in units of the mean square of the features.
    """
    before, after = before.double(), after.double()
    width = before.shape[1]
    square = before.T @ before
    square += ridge * square.trace() / width * torch.eye(width, dtype=torch.float64)
    return (torch.eye(width, dtype=torch.float64) + torch.linalg.solve(square, before.T @ (after - before))).float()
