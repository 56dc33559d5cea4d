"""Prompts that are preserved while a concept is learned: of earlier words, and its captions with earlier words."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from clora_core.method.regularizers.protocol import Regularizer, Term
from clora_core.method.step import Setting
from clora_core.model.base import Base
from clora_core.model.concept import Concept, ConceptToken
from clora_core.museum.museum import EXTRA_PROMPTS, Exhibit, Museum
from tests.small import short, small_concept, taught

CAPTIONS = ("a {word} style picture of a cat", "a {word} style picture of a dog", "a {word} style picture of a cat")


def museum(base: Base, *exhibits: tuple[str, str, str]) -> Museum:
    """Words alone: (word, kind, prompt)."""
    tokens = [ConceptToken(word, {"clip_l": torch.full((1, 1, 128), 0.1)}) for word, _, _ in exhibits]
    earlier = [Exhibit(t, {}, short(), kind, prompt) for t, (_, kind, prompt) in zip(tokens, exhibits, strict=True)]  # type: ignore[arg-type]
    return Museum(base.fingerprint, tuple(earlier))


def style(*captions: str) -> Concept:
    return Concept("<new>", torch.zeros(len(captions), 3, 32, 32), "style", captions=captions)


def test_earlier_styles_are_preserved_with_the_new_captions(base: Base):
    earlier = museum(base, ("<old>", "style", "a <old> style picture"), ("<cat>", "object", "a photo of <cat>"))
    assert earlier.prompts_beside(style(*CAPTIONS)) == (
        "a <old> style picture",
        "a photo of <cat>",
        "a <old> style picture of a cat",
        "a <old> style picture of a dog",
    )


def test_without_captions_only_earlier_prompts_are_preserved(base: Base):
    earlier = museum(base, ("<a>", "object", "a photo of <a>"), ("<b>", "object", "a photo of <b>"))
    assert earlier.prompts_beside(small_concept("<c>", seed=0)) == earlier.prompts


def test_the_new_word_is_replaced_only_as_a_whole_word(base: Base):
    concept = Concept("sks", torch.zeros(1, 3, 32, 32), captions=("sks, with masks, not {word}",))
    assert museum(base, ("<o>", "object", "")).prompts_beside(concept)[1] == "<o>, with masks, not <o>"


@pytest.mark.parametrize("count", [1, 7, 100])
def test_extra_prompts_are_limited_and_shared_equally_among_words(base: Base, count: int):
    earlier = museum(base, *((f"<{n}>", "style", f"a <{n}> style picture") for n in range(count)))
    beside = earlier.prompts_beside(style(*(f"a {{word}} style picture of {n} cats" for n in range(80))))
    shares = [sum(f"<{n}>" in prompt for prompt in beside) for n in range(count)]
    if count <= EXTRA_PROMPTS:
        assert len(beside) - count <= EXTRA_PROMPTS and min(shares) == max(shares) >= 2
    else:
        assert len(beside) - count == EXTRA_PROMPTS and {*shares[:3], *shares[-3:]} == {1, 2} == set(shares)


@dataclass(frozen=True)
class Listening(Regularizer):
    """A term of zero that records its setting."""

    settings: list[Setting] = field(default_factory=list)
    name: ClassVar[str] = "listening"

    def begin(self, setting: Setting) -> Term:
        self.settings.append(setting)
        return lambda step: step.latents.new_zeros(())


def test_regularizers_get_the_preserved_prompts(base: Base):
    earlier, settings = museum(base, ("<old>", "style", "a <old> style picture")), []
    concept = Concept("<new>", small_concept(count=3).pictures, "style", captions=CAPTIONS)
    taught(base, earlier, concept, short(Listening(settings=settings), steps=1))
    assert settings[0].past.beside == earlier.prompts_beside(concept) != settings[0].past.prompts == earlier.prompts
