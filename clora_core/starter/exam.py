"""Evaluate a museum of the starter model: is every subject recognized, and does the base still follow prompts?"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..model.base import Base
from ..model.concept import Concept
from ..model.sampling import Sampling, sample
from ..museum.museum import Museum, viewing
from ..pictures import in_memory
from .draw import drawings
from .judge import Judge, agreement, identified, read
from .style_judge import NAMES, StyleJudge, style_features
from .subjects import ALL_IDENTITIES, SPARE_STYLES, candidates, description, scenes, unrelated
from .world import IDENTITY, SAYABLE, Scene, caption, describe, imagine_portrait, imagine_thing, place_phrase

SIDE_PX = 64  # of pictures of the world
STYLE_GUIDANCE = 3.0  # at the 5 that shows characters well, the colors of learned styles burn out
Wording = Literal["usual", "noun", "first", "unrelated", "described"]
PHRASES: Mapping[Wording, Callable[[str], str]] = {"unrelated": unrelated, "described": description}
HATS = tuple(hat for hat in SAYABLE["hat"] if hat != "none")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the judges recognize in sampled pictures of one subject.

    alignment: the share recognized as the subject, among its `candidates`, or among all ten styles (for a spare style,
    thirteen). attributes: the share of its traits that are visible, for a style of what the prompts ask for, relative
    to real pictures. taken_for: the subject recognized in each picture. pictures: (n, 3, 64, 64).
    """

    alignment: float
    attributes: float
    taken_for: Sequence[str]
    pictures: Tensor


def concept_of(subject: str, count: int, *, seed: int, vectors: int = 1, wording: Wording = "usual") -> Concept:
    """A built-in subject as a concept, its word in angle brackets.

    Every picture of an identity has the caption "a photo of <word>"; captions of a style also describe the content.
    Wording "noun": an identity's word starts from the noun of its kind, which also follows it ("a photo of <ada>
    person"). "first": a style's word comes before the content ("in <neon> style a photo of …"). "unrelated" and
    "described", for a frozen token: an identity's word stands for two other nouns, or for some of its traits.
    """
    word, images = f"<{subject}>", drawn(subject, count, seed=seed)
    if subject in ALL_IDENTITIES:
        kind = ALL_IDENTITIES[subject]["kind"] if wording == "noun" else ""
        template = f"a photo of {{word}} {kind}".strip()
        if phrase := PHRASES.get(wording):
            return Concept(word, in_memory(images), start=phrase(subject), vectors=0, token_seed=seed)
        return Concept(word, in_memory(images), template=template, vectors=vectors, start=kind, token_seed=seed)
    rng = random.Random(f"captions {subject} {seed}")
    contents = scenes(subject, count, seed=seed)
    template = "in {word} style a photo" if wording == "first" else "a photo in {word} style"
    captions = tuple(styled_prompt(template, caption(replace(content, style="plain"), rng)) for content in contents)
    return Concept(word, in_memory(images), "style", template, captions, vectors, token_seed=seed)


def styled_prompt(prompt: str, content: str) -> str:
    """A style's prompt with this content: "a cat in <neon> style"."""
    return prompt.replace("a photo", content, 1)


def drawn(subject: str, count: int, *, seed: int) -> Tensor:
    """Real pictures of a built-in subject, (n, 3, 64, 64) in [-1, 1]."""
    return drawings(scenes(subject, count, seed=seed))


@dataclass(frozen=True, eq=False)
class Examiner:
    """Samples subjects with a museum of the starter model, and lets the judges classify the pictures.

    ceilings: identity → the share of its traits that the judge recognizes in real pictures; measured on first use.
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

    def evaluate(self, museum: Museum, subject: str, *, count: int) -> Evaluation:
        """Sample the subject's word with the whole museum: in its own prompt, for a style with various contents."""
        if subject in ALL_IDENTITIES:
            return self._identity(museum, subject, count)
        return self._style(museum, subject, count)

    def edits(self, museum: Museum, identity: str, *, count: int) -> tuple[float, float]:
        """Sample an identity with a hat at some place. Returns how often both are visible, relative to real pictures,
        and how often the identity is still recognized."""
        rng = random.Random("dressed 0")
        edits = [{"hat": rng.choice(HATS), "background": rng.choice(SAYABLE["background"])} for _ in range(count)]
        prompts = [f"a photo of <{identity}> wearing a {a['hat']}{place_phrase(a['background'])}" for a in edits]
        verdict = read(self.judge, self._sampled(museum, prompts, self._sampling))
        real = drawings(
            Scene(imagine_portrait(rng, ALL_IDENTITIES[identity] | edit), seed=number)
            for number, edit in enumerate(edits)
        )
        share = _agreement(verdict, edits) / _agreement(read(self.judge, real), edits)
        return share, identified(verdict, candidates(identity)).count(identity) / count

    def edited(self, museum: Museum, identity: str, *, each: int) -> dict[str, float]:
        """The share of pictures in which the identity is recognized, for each kind of edit (`edited_prompts`).

        each: pictures of each kind.
        """
        rng = random.Random(f"edits {identity}")
        asked = [edit for _ in range(each) for edit in edited_prompts(f"<{identity}>", rng)]
        sampled = self._sampled(museum, [prompt for _, prompt in asked], self._sampling)
        found = identified(read(self.judge, sampled), candidates(identity))
        return {
            kind: sum(who == identity for who, (own, _) in zip(found, asked, strict=True) if own == kind) / each
            for kind in dict.fromkeys(kind for kind, _ in asked)
        }

    def features(self, pictures: Tensor, subject: str) -> Tensor:
        """The features by which sets of pictures of this subject are compared, (n, d)."""
        if subject not in ALL_IDENTITIES:
            return style_features(self.judge, pictures)
        with torch.no_grad():
            return self.judge.trunk(pictures)

    def plain_prompts(self, museum: Museum, *, count: int, seed: int = 0) -> tuple[float, Tensor]:
        """The share of what plain prompts ask for that is visible, relative to drawn pictures; and the pictures."""
        requests = plain_requests(count, seed=seed)
        sampled = self._sampled(museum, [prompt for prompt, _ in requests], replace(self._sampling, seed=seed))
        return _relative_agreement(self.judge, sampled, requests), sampled

    def _identity(self, museum: Museum, subject: str, count: int) -> Evaluation:
        sampled = self._sampled(museum, [museum.exhibit(f"<{subject}>").prompt] * count, self._sampling)
        verdict = read(self.judge, sampled)
        traits = {name: ALL_IDENTITIES[subject][name] for name in IDENTITY}
        if subject not in self.ceilings:
            real = read(self.judge, drawn(subject, 64, seed=10_000))
            self.ceilings[subject] = _agreement(real, [traits] * 64)
        share = _agreement(verdict, [traits] * count) / self.ceilings[subject]
        taken_for = identified(verdict, candidates(subject))
        return Evaluation(taken_for.count(subject) / count, share, taken_for, sampled)

    def _style(self, museum: Museum, subject: str, count: int) -> Evaluation:
        requests = plain_requests(count, seed=1)
        prompts = [styled_prompt(museum.exhibit(f"<{subject}>").prompt, prompt) for prompt, _ in requests]
        sampled = self._sampled(museum, prompts, Sampling(guidance=STYLE_GUIDANCE))
        share = _relative_agreement(self.judge, sampled, requests, subject)
        judge = self.spare_style_judge if subject in SPARE_STYLES else self.style_judge
        taken_for = judge.styles_of(sampled)
        return Evaluation(taken_for.count(subject) / count, share, taken_for, sampled)

    @property
    def _sampling(self) -> Sampling:
        return Sampling(guidance=self.base.family.guidance)

    def _sampled(self, museum: Museum, prompts: Sequence[str], sampling: Sampling) -> Tensor:
        return sampled_with(self.base, museum, prompts, sampling)


def sampled_with(base: Base, museum: Museum, prompts: Sequence[str], sampling: Sampling) -> Tensor:
    """A picture of each prompt with the whole museum, (n, 3, 64, 64)."""
    with viewing(base, museum.compact(), museum.gated):
        return sample(base, prompts, museum.tokens, sampling, latent_shape=base.latent_shape(SIDE_PX, SIDE_PX))


def edited_prompts(word: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """A prompt of every kind of edit: what it changes, and the prompt."""
    hat, place, shirt, mood = (
        rng.choice([value for value in SAYABLE[name] if value != "none"])
        for name in ("hat", "background", "shirt", "mood")
    )
    where = place_phrase(place)
    yield "hat and place", f"a photo of {word} wearing a {hat}{where}"
    yield "place", f"a photo of {word}{where}"
    yield "glasses", f"a photo of {word} wearing glasses"
    yield "shirt", f"a photo of {word} wearing a {shirt} shirt"
    yield "mood", f"a photo of a {mood} {word}"
    yield "word first", f"{word}{where}"
    yield "another template", f"a picture of {word} wearing a {hat}"
    yield "all", f"a photo of a {mood} {word} wearing a {hat} and a {shirt} shirt{where}"


def plain_requests(count: int, *, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Complete captions, of three portraits to one thing, and the attributes that they describe."""
    rng = random.Random(f"plain {seed}")
    things = [number % 4 == 3 for number in range(count)]
    attributes = [imagine_thing(rng) if thing else imagine_portrait(rng) for thing in things]
    return [(describe(scene), scene) for scene in attributes]


def captioned(attributes: dict[str, str]) -> dict[str, str]:
    """The attributes that `describe` mentions."""
    if "thing" in attributes:
        return attributes
    unsaid = {"hair"} if attributes["hairstyle"] == "bald" else set()
    unsaid |= {"mark"} if attributes["mark"] == "none" else set()
    return {name: attributes[name] for name in SAYABLE if name not in unsaid}


def _relative_agreement(
    judge: Judge, sampled: Tensor, requests: Sequence[tuple[str, dict[str, str]]], style: str = "plain"
) -> float:
    """The agreement of sampled pictures with what the requests describe, over that of drawn pictures."""
    real = drawings(Scene(attributes, style, seed=number) for number, (_, attributes) in enumerate(requests))
    expected = [captioned(attributes) for _, attributes in requests]
    return _agreement(read(judge, sampled), expected) / _agreement(read(judge, real), expected)


def _agreement(verdict: Mapping[str, Tensor], expected: Sequence[Mapping[str, str]]) -> float:
    return agreement(verdict, expected).mean().item()
