"""Only the longest known word matches, in every Unicode form."""

import pytest
import torch

from clora_core.errors import ConceptError, MuseumError
from clora_core.learning.learn import Learning
from clora_core.model.concept import Concept, ConceptToken, mentions, readable, unknown_words, with_word, word_pattern
from clora_core.museum.editing import edited, renamed
from clora_core.museum.museum import Museum, parse_strengths
from tests.small import museum_of, short, small_base, small_concept

NFC, NFD = "<m\u00fcller>", "<mu\u0308ller>"


def test_the_longest_known_word_matches():
    assert mentions("a photo of sks-dog", "sks") and not mentions("a photo of sks-dog", "sks", ["sks-dog"])
    assert mentions("sks and sks-dog", "sks", ["sks-dog"]) and mentions("sks-dogs", "sks", ["sks-dog"])
    assert with_word("sks, sks-dog, masks", "sks", "ohwx", ["sks-dog"]) == "ohwx, sks-dog, masks"
    assert with_word("sks-dog sks", "sks-dog", "<d>", ["sks"]) == "<d> sks"


def test_renaming_a_word_does_not_change_longer_words():
    museum = museum_of(small_base(), "sks", "sks-dog")
    found = renamed(museum, "sks", "ohwx")
    assert [exhibit.prompt for exhibit in found.exhibits] == ["a photo of ohwx", "a photo of sks-dog"]
    back = renamed(renamed(museum, "sks-dog", "1a1"), "1a1", "sks-dog")
    assert [exhibit.prompt for exhibit in back.exhibits] == [exhibit.prompt for exhibit in museum.exhibits]


def test_a_caption_with_only_a_longer_word_is_refused():
    base = small_base()
    museum = museum_of(base, "sks-dog")
    captions = ("a sks-dog", "a photo of sks")
    with pytest.raises(ConceptError, match="In 'a sks-dog', 'sks' is only a part of another known word"):
        Learning(base, museum, (small_concept("sks", count=2, captions=captions),), short())
    Learning(base, Museum(base.fingerprint), (small_concept("sks", count=2, captions=captions),), short())
    both = (small_concept("sks", count=2, captions=captions), small_concept("sks-dog"))
    with pytest.raises(ConceptError, match="only a part of another known word"):
        Learning(base, Museum(base.fingerprint), both, short())


def test_preserved_prompts_keep_longer_words():
    museum = museum_of(small_base(), "sks-dog")
    beside = museum.prompts_beside(small_concept("sks", count=1, captions=("sks beside sks-dog",)))
    assert "sks-dog beside sks-dog" in beside


def test_words_are_normalized_when_stored_and_when_searched():
    concept = small_concept(NFD, count=2, captions=(f"a photo of {NFC}", "{word} \u200bat\ufeff sea"))
    assert concept.word == NFC and concept.prompts() == [f"a photo of {NFC}", f"{NFC} at sea"]
    assert small_concept("<my\u200bcat>").word == "<mycat>"
    with pytest.raises(ConceptError, match="The word is empty"):
        Concept("\u200b", torch.zeros(1, 3, 64, 64))
    assert mentions(f"a {NFD}", NFC) and not unknown_words(f"a {NFD} of <my\u200bcat>", [NFC, "<mycat>"])
    museum = museum_of(small_base(), NFC)
    assert museum.exhibit(NFD).word == NFC and renamed(museum, NFD, "<mu\u0308>").words == ("<m\u00fc>",)
    with pytest.raises(ConceptError, match="already names exhibit 1"):
        Learning(small_base(), museum, (small_concept(NFD),), short())


@torch.no_grad()
def test_words_are_encoded_in_every_unicode_form():
    base = small_base()
    vectors = base.word_vectors("red")
    for word in (NFC, NFD, "<m\u00fc\u200bller>"):  # also as earlier versions stored it
        token = ConceptToken(word, {name: value[None] for name, value in vectors.items()})
        for written in (NFC, NFD, "<m\u00fcl\u00adler>"):
            found = base.encode_prompts([f"a {written} hat"], [token])
            assert torch.equal(found.states, base.encode_prompts(["a red hat"], []).states)
            assert list(found.places) == [NFC]


@torch.no_grad()
def test_text_beside_words_is_not_normalized():
    base = small_base()
    token = ConceptToken(NFC, {name: value[None] for name, value in base.word_vectors("red").items()})
    pattern = word_pattern([NFC])
    family, heart = "\U0001f469\u200d\U0001f680", "\u2764\ufe0f"
    assert readable(f"e\u0301 {family} {NFD}s {heart}", pattern) == f"e\u0301 {family} {NFC}s {heart}"
    prompt = f"e\u0301 {family} {heart}"
    assert torch.equal(base.encode_prompts([prompt], [token]).states, base.encode_prompts([prompt], []).states)


@pytest.mark.parametrize("hidden", ["\u200b", "\u202e", "\u2066", "\ufeff", "\u3164", "\ufe0f", "\U000e0041", "\xad"])
def test_invisible_characters_do_not_distinguish_words(hidden: str):
    museum, odd = museum_of(small_base(), "<my-cat>", "<tom>"), f"<my-{hidden}cat>"
    assert ConceptToken(odd, museum.tokens[0].vectors).word == "<my-cat>"
    assert parse_strengths([f"{odd}: 0.5"]) == {"<my-cat>": 0.5}
    assert edited(museum, f"rename <tom> <t{hidden}im>")[0].words == ("<my-cat>", "<tim>")
    assert edited(museum, f"remove {odd}")[1].startswith("'<my-cat>' is removed.")
    with pytest.raises(MuseumError, match="Two exhibits have the word '<my-cat>'"):
        renamed(museum, "<tom>", odd)
