"""Judges of the world of `emoji_data.py`, trained on real pictures only.

A small network names things. Discriminants over channel statistics, as in `style_judge.py`, name designers; the same
network was worse at that (right about 0.45 of held-out pictures, among eleven designers; the discriminants: 0.61).
"""

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
STEPS, BATCH, RATE = 1500, 32, 2e-3
GROUPS = 8  # of a norm


class JudgeNetwork(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] → log-probabilities of all names, (n, names). It sees them at 32×32."""

    def __init__(self, names: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for before, halved, after in ((3, 32, 48), (48, 64, 96), (96, 96, 96)):
            layers += [nn.Conv2d(before, halved, 4, stride=2, padding=1), nn.GroupNorm(GROUPS, halved), nn.ReLU()]
            layers += [nn.Conv2d(halved, after, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 4 * 4, names))

    def forward(self, pictures: Tensor) -> Tensor:
        return F.log_softmax(self.layers(pictures), dim=1)


@dataclass(frozen=True, eq=False)
class EmojiJudge:
    """Names what pictures show. names: all that it knows, as the network numbers them."""

    network: JudgeNetwork
    names: tuple[str, ...]

    @torch.no_grad()
    def named(self, pictures: Tensor, among: Sequence[str] = ()) -> list[str]:
        """The most likely of these names, or of all, for each picture."""
        among = among or self.names
        scores = torch.cat([self.network(part) for part in pictures.split(100)])
        places = [self.names.index(name) for name in among]
        return [among[place] for place in scores[:, places].argmax(1).tolist()]


def open_thing_judge(world: World, work: Path) -> EmojiJudge:
    """Trained on all things by nine designers, a quarter of the pictures gray; or from the folder."""
    pairs = world.drawn((*world.new, *world.known), [name for name in DESIGNERS if name not in HELD_OUT])
    labels = [name for name, _ in pairs]
    return _opened(work / "things.safetensors", world.floats(pairs), labels, scale=0.3, shift=0.1, gray=0.25)


def fit_designer_judge(world: World, designers: Sequence[str]) -> StyleJudge:
    """Tells these designers apart. Fitted to the known things that no prompt asks for."""
    shown = world.known[ASKED:]
    examples = {designer: world.floats(world.drawn(shown, [designer])) for designer in designers}
    return StyleJudge.fitted_to(load_judge(), examples)


def _opened(
    path: Path, pictures: Tensor, labels: Sequence[str], *, scale: float, shift: float, gray: float
) -> EmojiJudge:
    """Pictures are made smaller, shifted, blurred and noisy at random, and a share of them gray."""
    names = tuple(dict.fromkeys(labels))
    network = built_with_seed(lambda: JudgeNetwork(len(names)), seed=12)
    if not path.exists():
        numbers = torch.tensor([names.index(label) for label in labels])

        def loss(index: int) -> Tensor:
            rng = seeded("emoji judge", path.stem, index)
            chosen = torch.randint(len(pictures), (BATCH,), generator=rng)
            x = varied(pictures[chosen], rng, scale=scale, shift=shift)

            def some(share: float) -> Tensor:
                return torch.rand(BATCH, 1, 1, 1, generator=rng) < share

            x = torch.where(some(0.5), F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False), x)
            x = torch.where(some(gray), x.mean(1, keepdim=True).expand_as(x), x)
            x = x + 0.2 * torch.rand(BATCH, 1, 1, 1, generator=rng) * torch.randn(x.shape, generator=rng)
            with torch.random.fork_rng(devices=[]):  # dropout reads the global generator
                torch.manual_seed(index)
                return F.nll_loss(network(x), numbers[chosen])

        training = path.with_name(f"{path.stem}-training.safetensors")
        settings = {"steps": STEPS, "lr": RATE, "decay_from": 0.4, "ema": 0.99}
        train_network(network, loss, training, **settings, on_checkpoint=lambda module: None)
        save_half(network, path)
    network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return EmojiJudge(network.eval().requires_grad_(False), names)


def quality(world: World, things: EmojiJudge, judges: Sequence[StyleJudge], group: int) -> dict[str, float]:
    """How often the judges are right about real pictures that they were not trained on. group: things told apart."""
    shares = {}
    for designer in HELD_OUT:
        groups = [world.new[start : start + group] for start in range(0, len(world.new), group)]
        for title, amongs in (
            (f"new things among {group}", groups),
            (f"new things among {len(world.new)}", [world.new]),
            (f"known things among {ASKED}", [world.known[:ASKED]]),
            (f"known things among {len(things.names)}", [things.names]),
        ):
            names, found = [], []
            for among in amongs:
                pairs = world.drawn(among, [designer])
                names += [name for name, _ in pairs]
                found += things.named(world.floats(pairs), among)
            shares[f"{title}, by {designer}"] = share(found, names)
    for judge in judges:
        for designer in judge.names:
            found = judge.styles_of(world.floats(world.drawn((*world.known[:ASKED], *world.new), [designer])))
            shares[f"{designer} among {len(judge.names)} designers"] = share(found, [designer] * len(found))
    return shares


def share(found: Sequence[str], expected: Sequence[str]) -> float:
    """How many of the names are the expected ones."""
    return sum(map(str.__eq__, found, expected)) / len(expected)
