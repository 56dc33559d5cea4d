"""Captions of several lines, shuffled tags and dropout: the same captions for the same seed, also after resuming."""

import dataclasses
from collections import Counter

import pytest
import torch

from clora_core.errors import ConceptError, RecipeError
from clora_core.learning.key import learning_key
from clora_core.learning.learn import learn
from clora_core.learning.variation import varied_prompts, varies
from clora_core.method.recipe import Recipe
from clora_core.model.concept import Concept
from clora_core.museum.museum import Museum
from tests.small import short, small_base, small_concept

TAGS = "{word}, a red hat, sea, at night, a boat"


def concept(caption: str, word: str = "<one>") -> Concept:
    return small_concept(word, count=1, captions=(caption,))


def draws(caption: str, count: int = 300, **numbers: object) -> list[str]:
    recipe = Recipe(**numbers)
    return [varied_prompts(concept(caption), recipe, number, [0], ["<one>"])[0] for number in range(count)]


def test_without_options_captions_are_unchanged():
    assert not varies(Recipe()) and not varies(Recipe(keep_tokens=3))
    assert set(draws("{word}, a  b,c\n d")) == {"<one>, a  b,c d"}


def test_tags_are_shuffled_except_the_first_ones():
    found = Counter(draws(TAGS, shuffle_tags=True, keep_tokens=2))
    assert all(text.startswith("<one>, a red hat, ") for text in found)
    assert len(found) == 6 and min(found.values()) > 25, "every order of three, about as often"
    everything = draws(TAGS, shuffle_tags=True)
    assert {text.split(", ")[0] for text in everything} == {"<one>", "a red hat", "sea", "at night", "a boat"}
    assert all(sorted(text.split(", ")) == sorted(TAGS.replace("{word}", "<one>").split(", ")) for text in everything)


def test_tag_dropout_omits_a_share_of_the_tags_but_never_the_word():
    found = draws("a photo of {word}, sea, " + TAGS, tag_dropout=0.5, keep_tokens=2)
    assert all(text.startswith("a photo of <one>, sea") and text.count("<one>") == 2 for text in found)
    counts = Counter(tag for text in found for tag in text.split(", ")[2:])
    assert counts["<one>"] == 300
    assert all(110 < counts[tag] < 190 for tag in ("a red hat", "at night", "a boat"))


def test_caption_dropout_replaces_a_share_of_the_captions_by_the_template():
    found = Counter(draws(TAGS, caption_dropout=0.25))
    assert set(found) == {"a photo of <one>", TAGS.replace("{word}", "<one>")}
    assert 50 < found["a photo of <one>"] < 100


def test_lines_are_joined_or_used_as_separate_captions():
    lines = "a photo of {word}\n\n {word} at sea \n"
    assert concept(lines).prompts() == ["a photo of <one> <one> at sea"]
    found = Counter(draws(lines, caption_lines=True))
    assert set(found) == {"a photo of <one>", "<one> at sea"} and min(found.values()) > 110


def test_variations_depend_on_the_seed_the_batch_and_the_position():
    recipe = Recipe(shuffle_tags=True, seed=1)
    each = [varied_prompts(concept(TAGS), recipe, number, [0] * 4, ["<one>"]) for number in range(3)]
    assert each == [varied_prompts(concept(TAGS), recipe, number, [0] * 4, ["<one>"]) for number in range(3)]
    assert len({text for texts in each for text in texts}) > 6
    assert each[0] != varied_prompts(concept(TAGS), dataclasses.replace(recipe, seed=2), 0, [0] * 4, ["<one>"])


def test_a_resumed_learning_draws_the_same_captions():
    base, options = small_base(), {"shuffle_tags": True, "tag_dropout": 0.3, "caption_dropout": 0.2}
    taught = small_concept(count=2, captions=(TAGS, TAGS))
    recipe, states = short(**options, steps=4), []
    whole = learn(base, Museum(base.fingerprint), [taught], recipe, report=lambda p: states.append(p.snapshot()))
    resumed = learn(base, Museum(base.fingerprint), [taught], recipe, resume=states[1])
    assert whole[0].same_as(resumed[0])
    other = learn(base, Museum(base.fingerprint), [taught], short(steps=4))
    assert not whole[0].same_as(other[0])


def test_the_key_includes_the_options_and_the_lines():
    base = small_base()
    museum = Museum(base.fingerprint)
    options = ({}, {"shuffle_tags": True}, {"tag_dropout": 0.1}, {"caption_dropout": 0.1}, {"caption_lines": True})
    lines = concept("{word} a\n{word} b")
    keys = [learning_key(base, museum, [lines], Recipe(**each)) for each in options]
    keys.append(learning_key(base, museum, [concept("{word} a {word}\nb")], Recipe(caption_lines=True)))
    assert len(set(keys)) == 6
    keys = [learning_key(base, museum, [concept(text)], Recipe()) for text in ("{word} a\nb", "{word} a b")]
    assert len(set(keys)) == 1, "the same caption, if lines are joined"


def test_a_line_without_the_word_is_refused_with_caption_lines():
    base = small_base()
    taught = small_concept(count=1, captions=("a {word}\nthe sea",))
    with pytest.raises(ConceptError, match="The line 'the sea' of a caption does not mention '<one>'"):
        learn(base, Museum(base.fingerprint), [taught], short(caption_lines=True))


@pytest.mark.parametrize("numbers", [{"tag_dropout": 1.5}, {"caption_dropout": -0.1}, {"keep_tokens": -1}])
def test_numbers_out_of_range_are_refused(numbers: dict[str, float]):
    with pytest.raises(RecipeError, match=f"{next(iter(numbers))} is"):
        Recipe(**numbers)  # type: ignore[arg-type]


def test_latents_and_noise_do_not_depend_on_the_captions():
    """The options change only the prompts of a batch."""
    from clora_core.learning.lesson import Lesson
    from clora_core.learning.start import start

    base = small_base()
    taught = small_concept(count=2, captions=(TAGS, TAGS))
    steps = []
    for recipe in (short(), short(shuffle_tags=True)):
        lesson = Lesson.prepared(base, taught, recipe, (), ["<one>"])
        steps.append(lesson.step(3, start(base, [taught], recipe, Museum(base.fingerprint))))
    assert torch.equal(steps[0].noise, steps[1].noise) and torch.equal(steps[0].latents, steps[1].latents)
    assert not torch.equal(steps[0].conditioning.states, steps[1].conditioning.states)
