"""A small classifier of all attributes of a picture of the starter world, to measure what was learned.

It is trained on drawn pictures only and ships with the starter model. It also recognizes attributes that captions never
mention, so it can tell the ten built-in identities apart.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .layout import WEIGHTS
from .subjects import IDENTITIES
from .world import PORTRAIT, THING

HEADS: dict[str, tuple[str, ...]] = {
    **PORTRAIT,
    "thing": ("none", *THING["thing"]),
    "color": THING["color"],
}


class Judge(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] → log-probabilities of all values of all attributes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, halved, after in ((3, 32, 64), (64, 64, 96), (96, 96, 96)):
            layers += [nn.Conv2d(before, halved, 4, stride=2, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(halved, after, 3, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(96, 32, 1), nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(32 * 8 * 8, len(values)) for name, values in HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """attribute → (n, values)"""
        features = self.trunk(pictures)
        return {name: F.log_softmax(head(features), dim=1) for name, head in self.heads.items()}


def load_judge() -> Judge:
    """The shipped judge, frozen."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS / "judge.safetensors").items()})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def read(judge: Judge, pictures: Tensor) -> dict[str, Tensor]:
    """attribute → log-probabilities (n, values), a hundred pictures at a time."""
    parts = [judge(part) for part in pictures.split(100)]
    return {name: torch.cat([part[name] for part in parts]) for name in HEADS}


def agreement(verdict: Mapping[str, Tensor], attributes: Sequence[Mapping[str, str]]) -> Tensor:
    """(n,): the share of each picture's expected attributes that the judge considers the most likely."""
    shares = []
    for row, expected in enumerate(attributes):
        hits = [HEADS[name][int(verdict[name][row].argmax())] == value for name, value in expected.items()]
        shares.append(sum(hits) / len(hits))
    return torch.tensor(shares)


def identified(verdict: Mapping[str, Tensor], among: Mapping[str, Mapping[str, str]] = IDENTITIES) -> list[str]:
    """For each picture, the identity whose traits have the highest joint probability."""
    scores = []
    for traits in among.values():
        places = {name: HEADS[name].index(value) for name, value in traits.items()}
        scores.append(torch.stack([verdict[name][:, place] for name, place in places.items()]).sum(0))
    names = list(among)
    return [names[index] for index in torch.stack(scores).argmax(0).tolist()]
