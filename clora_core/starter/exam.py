"""Examine a museum over the starter model: is each identity still itself, and is the base still what it was?"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Base
from ..museum import Museum, shown
from ..pictures import as_floats, to_bytes
from ..sampling import Sampling, sample
from .draw import draw
from .judge import Judge, agreement, read, recognised
from .layout import LATENT_CHANNELS
from .subjects import IDENTITIES, pictures
from .world import IDENTITY, SAYABLE, Picture, describe, imagine_portrait, imagine_thing

LATENT_SHAPE = (LATENT_CHANNELS, 8, 8)


@dataclass(frozen=True, eq=False)
class Sight:
    """What the judge saw in pictures of one identity.

    alignment: the share taken for it among all ten identities. attributes: the share of its traits that were found,
    relative to real pictures. pictures: (n, 3, 64, 64).
    """

    alignment: float
    attributes: float
    pictures: Tensor


def drawn(subject: str, count: int, *, seed: int) -> Tensor:
    """Real pictures of a built-in subject, (n, 3, 64, 64) in [-1, 1]."""
    return as_floats(torch.stack([to_bytes(picture) for picture in pictures(subject, count, seed=seed)]))


def look(base: Base, museum: Museum, judge: Judge, identity: str, *, word: str, count: int, seed: int = 0) -> Sight:
    """Sample "a photo of <word>" under the whole museum and let the judge look at it."""
    prompt = f"a photo of {word}"
    with shown(base, museum.dense(), museum.gated):
        sampled = sample(base, [prompt] * count, museum.tokens, Sampling(seed=seed), latent_shape=LATENT_SHAPE)
    verdict = read(judge, sampled)
    traits = {name: IDENTITIES[identity][name] for name in IDENTITY}
    real = agreement(read(judge, drawn(identity, 64, seed=10_000)), [traits] * 64).mean().item()
    found = agreement(verdict, [traits] * count).mean().item()
    taken_for = recognised(verdict)
    return Sight(taken_for.count(identity) / count, found / real, sampled)


def plain_prompts(base: Base, museum: Museum, judge: Judge, *, count: int, seed: int = 0) -> tuple[float, Tensor]:
    """How often prompts without any new word get what they ask for, relative to drawn pictures; and their pictures."""
    asked = plain_requests(count, seed=seed)
    prompts, expected = [prompt for prompt, _ in asked], [_said(attributes) for _, attributes in asked]
    with shown(base, museum.dense(), museum.gated):
        sampled = sample(base, prompts, museum.tokens, Sampling(seed=seed), latent_shape=LATENT_SHAPE)
    real = [draw(Picture(attributes, seed=number)) for number, (_, attributes) in enumerate(asked)]
    ceiling = agreement(read(judge, as_floats(torch.stack([to_bytes(picture) for picture in real]))), expected).mean()
    return (agreement(read(judge, sampled), expected).mean() / ceiling).item(), sampled


def plain_requests(count: int, *, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Captions that say everything that can be said, of three portraits to one thing, and what they describe."""
    rng = random.Random(f"plain {seed}")
    things = [number % 4 == 3 for number in range(count)]
    attributes = [imagine_thing(rng) if thing else imagine_portrait(rng) for thing in things]
    return [(describe(each), each) for each in attributes]


def _said(attributes: dict[str, str]) -> dict[str, str]:
    """The attributes that `describe` mentions."""
    if "thing" in attributes:
        return attributes
    unsaid = {"hair"} if attributes["hairstyle"] == "bald" else set()
    unsaid |= {"mark"} if attributes["mark"] == "none" else set()
    return {name: attributes[name] for name in SAYABLE if name not in unsaid}
