"""Examine a museum over the starter model: is each subject still itself, and is the base still what it was?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..model.base import Base
from ..model.concept import Concept
from ..model.sampling import Sampling, sample
from ..museum.museum import Museum, viewing
from ..pictures import as_floats, in_memory, to_bytes
from .draw import draw
from .judge import Judge, agreement, read, recognised
from .layout import LATENT_CHANNELS
from .style_judge import NAMES, StyleJudge, style_features
from .subjects import EVERYBODY, SPARE_STYLES, alike, imagine_subject, pictures
from .world import IDENTITY, SAYABLE, Picture, caption, describe, imagine_portrait, imagine_thing, place_phrase

LATENT_SHAPE = (LATENT_CHANNELS, 8, 8)
STYLE_GUIDANCE = 3.0  # at the 5 that shows characters well, the colors of learned styles burn out
Wording = Literal["usual", "noun", "first"]
HATS = tuple(hat for hat in SAYABLE["hat"] if hat != "none")


@dataclass(frozen=True, eq=False)
class Sight:
    """What the judges saw in pictures of one subject.

    alignment: the share taken for it, among those who are `alike` or all ten styles (for a spare one, all thirteen).
    attributes: the share of its traits that were found, for a style of what the prompts asked for in it, relative to
    real pictures. taken_for: what each picture was taken for. pictures: (n, 3, 64, 64).
    """

    alignment: float
    attributes: float
    taken_for: Sequence[str]
    pictures: Tensor


def concept_of(subject: str, count: int, *, seed: int, vectors: int = 1, wording: Wording = "usual") -> Concept:
    """A built-in subject as something to learn, its word in angle brackets.

    An identity is "a photo of <word>" in every picture; of a style's pictures the captions say what is on them. With
    "noun" an identity's word starts from the word for its kind, which also stands behind it ("a photo of <ada>
    person"); with "first" a style's word stands before what is on the picture ("in <neon> style a photo of …").
    """
    word, shown = f"<{subject}>", drawn(subject, count, seed=seed)
    if subject in EVERYBODY:
        kind = EVERYBODY[subject]["kind"] if wording == "noun" else ""
        template = f"a photo of {{word}} {kind}".strip()
        return Concept(word, in_memory(shown), template=template, vectors=vectors, start=kind, token_seed=seed)
    rng = random.Random(f"captions {subject} {seed}")
    contents = imagine_subject(subject, count, random.Random(f"{subject} {seed}"))
    template = "in {word} style a photo" if wording == "first" else "a photo in {word} style"
    captions = tuple(said_in(template, caption(replace(content, style="plain"), rng)) for content in contents)
    return Concept(word, in_memory(shown), "style", template, captions, vectors, token_seed=seed)


def said_in(prompt: str, content: str) -> str:
    """A style's prompt with something on the picture: "a cat in <neon> style"."""
    return prompt.replace("a photo", content, 1)


def drawn(subject: str, count: int, *, seed: int) -> Tensor:
    """Real pictures of a built-in subject, (n, 3, 64, 64) in [-1, 1]."""
    return _floats(pictures(subject, count, seed=seed))


@dataclass(frozen=True, eq=False)
class Examiner:
    """Looks at what a museum over the starter shows for a subject's word.

    ceilings: the share of an identity's traits that the judge finds in real pictures, once it has been asked for.
    """

    base: Base
    judge: Judge
    ceilings: dict[str, float] = field(default_factory=dict)

    @cached_property
    def style_judge(self) -> StyleJudge:
        return StyleJudge.fitted(self.judge)

    @cached_property
    def spare_style_judge(self) -> StyleJudge:
        return StyleJudge.fitted(self.judge, (*NAMES, *SPARE_STYLES))

    def look(self, museum: Museum, subject: str, *, count: int, seed: int = 0) -> Sight:
        """Sample the subject's word under the whole museum: as it was learned, a style's with many contents."""
        if subject in EVERYBODY:
            return self._identity(museum, subject, count, seed)
        return self._style(museum, subject, count, seed)

    def dressed(self, museum: Museum, identity: str, *, count: int, seed: int = 0) -> tuple[float, float]:
        """Ask for an identity by its word alone, with a hat at some place: how often both are there, relative to real
        pictures; and how often it is still taken for that identity."""
        rng = random.Random(f"dressed {seed}")
        asked = [{"hat": rng.choice(HATS), "background": rng.choice(SAYABLE["background"])} for _ in range(count)]
        prompts = [f"a photo of <{identity}> wearing a {a['hat']}{place_phrase(a['background'])}" for a in asked]
        verdict = read(self.judge, self._sampled(museum, prompts, Sampling(seed=seed)))
        drawings = [
            draw(Picture(imagine_portrait(rng, EVERYBODY[identity] | wanted), seed=number))
            for number, wanted in enumerate(asked)
        ]
        found, ceiling = (
            agreement(each, asked).mean().item() for each in (verdict, read(self.judge, _floats(drawings)))
        )
        return found / ceiling, recognised(verdict, alike(identity)).count(identity) / count

    def features(self, pictures: Tensor, subject: str) -> Tensor:
        """What sets of pictures of that subject are compared by, (n, d)."""
        if subject not in EVERYBODY:
            return style_features(self.judge, pictures)
        with torch.no_grad():
            return self.judge.trunk(pictures)

    def _identity(self, museum: Museum, subject: str, count: int, seed: int) -> Sight:
        sampled = self._sampled(museum, [museum.exhibit(f"<{subject}>").prompt] * count, Sampling(seed=seed))
        verdict = read(self.judge, sampled)
        traits = {name: EVERYBODY[subject][name] for name in IDENTITY}
        if subject not in self.ceilings:
            real = read(self.judge, drawn(subject, 64, seed=10_000))
            self.ceilings[subject] = agreement(real, [traits] * 64).mean().item()
        found = agreement(verdict, [traits] * count).mean().item()
        taken_for = recognised(verdict, alike(subject))
        return Sight(taken_for.count(subject) / count, found / self.ceilings[subject], taken_for, sampled)

    def _style(self, museum: Museum, subject: str, count: int, seed: int) -> Sight:
        asked = plain_requests(count, seed=seed + 1)
        prompts = [said_in(museum.exhibit(f"<{subject}>").prompt, prompt) for prompt, _ in asked]
        sampled = self._sampled(museum, prompts, Sampling(seed=seed, guidance=STYLE_GUIDANCE))
        real = _floats([draw(Picture(content, subject, seed=number)) for number, (_, content) in enumerate(asked)])
        expected = [said(content) for _, content in asked]
        found, ceiling = (agreement(read(self.judge, each), expected).mean().item() for each in (sampled, real))
        judge = self.spare_style_judge if subject in SPARE_STYLES else self.style_judge
        taken_for = judge.styles_of(sampled)
        return Sight(taken_for.count(subject) / count, found / ceiling, taken_for, sampled)

    def _sampled(self, museum: Museum, prompts: Sequence[str], sampling: Sampling) -> Tensor:
        with viewing(self.base, museum.dense(), museum.gated):
            return sample(self.base, prompts, museum.tokens, sampling, latent_shape=LATENT_SHAPE)


def plain_prompts(base: Base, museum: Museum, judge: Judge, *, count: int, seed: int = 0) -> tuple[float, Tensor]:
    """How often prompts without any new word get what they ask for, relative to drawn pictures; and their pictures."""
    asked = plain_requests(count, seed=seed)
    prompts, expected = [prompt for prompt, _ in asked], [said(attributes) for _, attributes in asked]
    with viewing(base, museum.dense(), museum.gated):
        sampled = sample(base, prompts, museum.tokens, Sampling(seed=seed), latent_shape=LATENT_SHAPE)
    real = _floats([draw(Picture(attributes, seed=number)) for number, (_, attributes) in enumerate(asked)])
    ceiling = agreement(read(judge, real), expected).mean()
    return (agreement(read(judge, sampled), expected).mean() / ceiling).item(), sampled


def _floats(drawings: Sequence[Image.Image]) -> Tensor:
    return as_floats(torch.stack([to_bytes(drawing) for drawing in drawings]))


def plain_requests(count: int, *, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Captions that say everything that can be said, of three portraits to one thing, and what they describe."""
    rng = random.Random(f"plain {seed}")
    things = [number % 4 == 3 for number in range(count)]
    attributes = [imagine_thing(rng) if thing else imagine_portrait(rng) for thing in things]
    return [(describe(each), each) for each in attributes]


def said(attributes: dict[str, str]) -> dict[str, str]:
    """The attributes that `describe` mentions."""
    if "thing" in attributes:
        return attributes
    unsaid = {"hair"} if attributes["hairstyle"] == "bald" else set()
    unsaid |= {"mark"} if attributes["mark"] == "none" else set()
    return {name: attributes[name] for name in SAYABLE if name not in unsaid}
