"""Judges of the world of `emoji_data.py`, trained on real pictures only: of things, and of designers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.emoji_data import DESIGNERS, World, varied
from clora_core.bench.training import built_with_seed, save_half, train_network
from clora_core.seeds import seeded
from clora_core.starter.judge import load_judge
from clora_core.starter.style_judge import StyleJudge

HELD_OUT = ("openmoji", "noto-v1")  # designers whose pictures the judge of things never sees
ASKED = 60  # known things that prompts ask for; the judge of designers never sees them, nor the new ones
STEPS, BATCH, RATE = 1500, 64, 2e-3
GROUPS = 8  # of a norm


class ThingNetwork(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] → log-probabilities of all things, (n, things). It sees them at 32×32."""

    def __init__(self, things: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for before, after in ((3, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 4 * 4, things))

    def forward(self, pictures: Tensor) -> Tensor:
        return F.log_softmax(self.layers(pictures), dim=1)


@dataclass(frozen=True, eq=False)
class ThingJudge:
    """Names what a picture shows. names: of all things that it knows, as the network numbers them."""

    network: ThingNetwork
    names: tuple[str, ...]

    @torch.no_grad()
    def named(self, pictures: Tensor, among: Sequence[str]) -> list[str]:
        """The most likely of these names for each picture."""
        scores = torch.cat([self.network(part) for part in pictures.split(100)])
        places = [self.names.index(name) for name in among]
        return [among[place] for place in scores[:, places].argmax(1).tolist()]


def open_thing_judge(world: World, work: Path) -> ThingJudge:
    """Trained, or from the folder."""
    names = (*world.new, *world.known)
    network, path = built_with_seed(lambda: ThingNetwork(len(names)), seed=12), work / "things.safetensors"
    if not path.exists():
        _train(network, world, names, work)
        save_half(network, path)
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return ThingJudge(network.eval().requires_grad_(False), names)


def _train(network: ThingNetwork, world: World, names: Sequence[str], work: Path) -> None:
    """Pictures are made smaller, shifted, blurred and noisy at random, a quarter of them gray."""
    seen = [designer for designer in DESIGNERS if designer not in HELD_OUT]
    pairs = world.drawn(names, seen)
    pictures, labels = world.floats(pairs), torch.tensor([names.index(name) for name, _ in pairs])

    def loss(index: int) -> Tensor:
        rng = seeded("emoji judge", index)
        chosen = torch.randint(len(pairs), (BATCH,), generator=rng)
        x = varied(pictures[chosen], rng, scale=0.3, shift=0.1)

        def some(share: float) -> Tensor:
            return torch.rand(BATCH, 1, 1, 1, generator=rng) < share

        x = torch.where(some(0.5), F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False), x)
        x = torch.where(some(0.25), x.mean(1, keepdim=True).expand_as(x), x)
        x = x + 0.2 * torch.rand(BATCH, 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
        with torch.random.fork_rng(devices=[]):  # dropout reads the global generator
            torch.manual_seed(index)
            return F.nll_loss(network(x), labels[chosen])

    numbers = {"steps": STEPS, "lr": RATE, "decay_from": 0.4, "ema": 0.99}
    train_network(network, loss, work / "things-training.safetensors", **numbers, on_checkpoint=lambda module: None)


def fit_designer_judge(world: World) -> StyleJudge:
    """Channel statistics of the known things that no prompt asks for."""
    shown = world.known[ASKED:]
    return StyleJudge.fitted_to(
        load_judge(), {designer: world.floats(world.drawn(shown, [designer])) for designer in DESIGNERS}
    )


def quality(world: World, things: ThingJudge, designers: StyleJudge) -> dict[str, float]:
    """How often the judges are right about real pictures that they were not trained on."""
    asked, unseen = world.known[:ASKED], [*world.known[:ASKED], *world.new]
    shares = {}
    for designer in HELD_OUT:
        for title, among in (("new", world.new), ("asked", asked), ("all", things.names)):
            pairs = world.drawn(among, [designer])
            found = things.named(world.floats(pairs), among)
            shares[f"{title} things by {designer}"] = share(found, [name for name, _ in pairs])
    for designer in DESIGNERS:
        found = designers.styles_of(world.floats(world.drawn(unseen, [designer])))
        shares[f"designer {designer}"] = share(found, [designer] * len(found))
    return shares


def share(found: Sequence[str], expected: Sequence[str]) -> float:
    """How many of the names are the expected ones."""
    return sum(map(str.__eq__, found, expected)) / len(expected)
