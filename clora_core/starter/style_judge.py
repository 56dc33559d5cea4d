"""Recognize the style of a picture: a linear classifier over channel statistics, fitted to drawn pictures on creation.

A style does not depend on the layout. The features are the mean and deviation of every channel of the picture and of
the judge's first two layers (style as statistics of features: Huang and Belongie 2017, arXiv:1703.06868), with linear
discriminants over them. It has no stored weights; fitting takes a few seconds.
"""

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .draw import drawings
from .judge import Judge
from .styles import BASE, HELD_BACK
from .world import Scene, imagine

NAMES = ("plain", *BASE, *HELD_BACK)
EXAMPLES = 64
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity


@torch.no_grad()
def style_features(judge: Judge, pictures: Tensor) -> Tensor:
    """(n, 198): mean and deviation over all places of each channel. pictures (n, 3, 64, 64) in [-1, 1]."""
    parts, features = [pictures.mean((2, 3)), pictures.flatten(2).std(2)], pictures
    for number, layer in enumerate(itertools.islice(judge.trunk.children(), 4)):
        features = layer(features)
        if number in (1, 3):
            parts += [features.mean((2, 3)), features.flatten(2).std(2)]
    return torch.cat(parts, dim=1)


@dataclass(frozen=True, eq=False)
class StyleJudge:
    """Recognizes the styles of these names. weights (features, styles), offset (styles,)."""

    judge: Judge
    names: tuple[str, ...]
    weights: Tensor
    offset: Tensor

    @classmethod
    def fitted(cls, judge: Judge, names: tuple[str, ...] = NAMES) -> "StyleJudge":
        """Fit drawn pictures of all styles: by default "plain", the base's styles and those to learn. Deterministic."""
        return cls.fitted_to(judge, {style: drawn_in(style, EXAMPLES, seed=0) for style in names})

    @classmethod
    def fitted_to(cls, judge: Judge, examples: Mapping[str, Tensor]) -> "StyleJudge":
        """Fit pictures of each style, (n, 3, 64, 64)."""
        features = [style_features(judge, pictures).double() for pictures in examples.values()]
        means = torch.stack([part.mean(0) for part in features])
        within = torch.cat([part - mean for part, mean in zip(features, means, strict=True)])
        scale = within.std(0).clamp_min(1e-6)
        spread = (within / scale).T @ (within / scale) / len(within)
        spread = (1 - SHRINKAGE) * spread + SHRINKAGE * torch.eye(len(spread), dtype=torch.float64)
        weights = torch.linalg.solve(spread, (means / scale).T) / scale[:, None]
        offset = -0.5 * (means.T * weights).sum(0)
        return cls(judge, tuple(examples), weights.float(), offset.float())

    def styles_of(self, pictures: Tensor) -> list[str]:
        """The most likely style of each picture."""
        scores = style_features(self.judge, pictures) @ self.weights + self.offset
        return [self.names[index] for index in scores.argmax(1).tolist()]


def drawn_in(style: str, count: int, *, seed: int) -> Tensor:
    """Pictures of the starter world in one style, (n, 3, 64, 64) in [-1, 1]."""
    rng = random.Random(f"judged {style} {seed}")
    plain = [imagine(rng)[0] for _ in range(count)]
    return drawings(Scene(scene.attributes, style, scene.seed) for scene in plain)
