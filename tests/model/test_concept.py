"""Concepts are valid, or refused with advice; words are found in texts."""

import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clora_core.errors import ConceptError
from clora_core.model.concept import Concept, ConceptToken, check_word, mentions, unknown_words, word_pattern

PICTURES = torch.zeros(3, 3, 8, 8)


@pytest.mark.parametrize("word", ["<my-cat>", "sks", "*cat*", "犬", "ключ", "x1", "1st", "a.b", "v1.5-style", "o" * 64])
def test_words_that_prompts_can_contain_are_accepted(word: str):
    check_word(word)
    assert Concept(word, PICTURES).prompt == f"a photo of {word}"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("", "The word is empty"),
        ("   ", "no letter or digit"),
        ("<->", "no letter or digit"),
        ("7", "read as a number"),
        ("-1.5", "read as a number"),
        ("+3", "read as a number"),
        ("my cat", "contains ' '"),
        ("my\tcat", r"contains '\\t'"),
        ("cat\n", r"contains '\\n'"),
        ("(cat", r"contains '\('"),
        ("cat)", r"contains '\)'"),
        ("[cat]", r"contains '\['"),
        ("{cat}", r"contains '\{'"),
        ("{word}", r"contains '\{'"),
        ("cat:1.2", "contains ':'"),
        ("cat,dog", "contains ','"),
        ("cat|dog", r"contains '\|'"),
        (r"cat\dog", r"contains '\\\\'"),
        ('"cat"', "contains '\"'"),
        ("o" * 65, "longer than 64"),
        ("a\0b", "unprintable character"),
        ("a\x9bb", "unprintable character"),
        ("a\ud800b", "unprintable character"),
    ],
)
def test_words_that_prompts_would_misread_are_refused(word: str, reason: str):
    for attempt in (
        lambda: check_word(word),
        lambda: Concept(word, PICTURES),
        lambda: ConceptToken(word, {"clip_l": torch.zeros(1, 1, 4)}),
    ):
        with pytest.raises(ConceptError, match=reason) as refusal:
            attempt()
        assert "<my-cat>" in str(refusal.value), "every refusal shows a word that works"


@pytest.mark.parametrize("odd", ["\0", "\x1b", "\x9b", "\udc80", "x" * 10_001])
def test_unprintable_and_too_long_texts_are_refused(odd: str):
    for texts in (
        {"template": f"{{word}} {odd}"},
        {"captions": ("{word}", f"{odd} {{word}}", "{word}")},
        {"start": odd},
    ):
        with pytest.raises(ConceptError, match=r"unprintable character|limit is 10000"):
            Concept("<my-cat>", PICTURES, **texts)  # type: ignore[arg-type]
    assert Concept("<my-cat>", PICTURES, template="a photo\n\tof {word}\r\n").prompt == "a photo\n\tof <my-cat>\r\n"


def test_a_word_is_found_only_as_a_whole_word():
    assert not mentions("two masks", "sks") and not mentions("sksy", "sks") and not mentions("a_sks", "sks")
    assert mentions("sks", "sks") and mentions("a photo of sks, smiling", "sks") and mentions("(sks:1.2)", "sks")


def test_a_bracketed_word_is_found_beside_punctuation():
    text = "<my-cat>, (<my-cat>:1.2) and <my-cat>'s friend"
    assert len(word_pattern(["<my-cat>"]).findall(text)) == 3
    assert word_pattern(["<my-cat>"]).findall("<my-cat><my-cat>") == ["<my-cat>", "<my-cat>"]
    assert not mentions("a <my-cats>", "<my-cat>")


def test_a_bracketed_word_is_found_beside_letters():
    """In plurals, and in scripts without spaces between words."""
    for text in ("two <猫>s", "一张<猫>的照片", "a_<猫>_b", "<猫>2"):
        assert word_pattern(["<猫>"]).findall(text) == ["<猫>"]
    assert mentions("a cat!s", "cat!") and not mentions("acat!", "cat!") and not mentions("一张猫的照片", "猫")


@pytest.mark.parametrize("texts", [{"template": "two {word}s"}, {"captions": ("{word}", "my_{word}", "{word}")}])
def test_a_word_that_touches_other_letters_is_refused(texts: dict):
    """It would be read as another word, so nothing would be learned."""
    wrong = texts.get("template") or texts["captions"][1]
    with pytest.raises(ConceptError, match=re.escape(f"In '{wrong}' the word touches other letters") + ".*<sks>"):
        Concept("sks", PICTURES, **texts)
    assert Concept("<sks>", PICTURES, **texts).prompts()[1] in ("two <sks>s", "my_<sks>")


def test_the_template_is_checked_even_with_captions():
    with pytest.raises(ConceptError, match="'a photo' does not mention"):
        Concept("<a>", PICTURES, template="a photo", captions=("{word}",) * 3)


def test_the_longest_of_several_words_is_found_first():
    assert word_pattern(["<cat>", "<cat>-two"]).findall("<cat>-two and <cat>") == ["<cat>-two", "<cat>"]


WORDS = st.from_regex(r"<?[a-z0-9.*+?^$-]{1,8}>?", fullmatch=True).filter(lambda word: any(map(str.isalnum, word)))


@given(WORDS, st.integers(0, 4))
def test_any_word_is_found_as_often_as_it_occurs(word: str, times: int):
    text = " and ".join(["something", *[word] * times])
    if not any(part == word for part in ("something", "and")):
        assert word_pattern([word]).findall(text) == [word] * times


@given(WORDS)
def test_characters_of_a_word_never_act_as_a_pattern(word: str):
    assert word_pattern([word]).fullmatch(word)
    for other in ("xyzzy", word + "q", "q" + word):
        found = word_pattern([word]).fullmatch(other)
        assert (found is not None) == (other == word)


def one_after_another(words: list[str]) -> re.Pattern[str]:
    """A naive `word_pattern`: every word separately, the longest first."""
    bounds = [(r"(?<!\w)" if word[0].isalnum() else "", r"(?!\w)" if word[-1].isalnum() else "") for word in words]
    whole = [before + re.escape(word) + after for word, (before, after) in zip(words, bounds, strict=True)]
    return re.compile("|".join(sorted(whole, key=lambda found: -len(words[whole.index(found)]))))


FEW_LETTERS = st.text("ab1<>-猫", min_size=1, max_size=5).filter(lambda word: any(map(str.isalnum, word)))


@given(st.lists(FEW_LETTERS, min_size=1, max_size=8, unique=True), st.text("ab1<>-猫 _", max_size=60))
def test_many_words_at_once_are_found_as_by_a_naive_pattern(words: list[str], text: str):
    found = [match.span() for match in word_pattern(words).finditer(text)]
    assert found == [match.span() for match in one_after_another(words).finditer(text)]


def test_search_time_grows_more_slowly_than_the_number_of_words():
    """If each word were tried at each place, a thousand would take a hundred times as long as ten."""
    text = "a photo of <w and <wx>, " * 500

    def seconds(count: int) -> float:
        pattern = word_pattern([f"<w{number:04}>" for number in range(count)])
        times = []
        for _ in range(5):
            began = time.process_time()
            assert not pattern.findall(text)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(1000) < 10 * seconds(10)


def test_without_captions_every_picture_has_the_template():
    assert Concept("<a>", PICTURES).prompts() == ["a photo of <a>"] * 3
    assert Concept("<a>", PICTURES, "style").prompts() == ["a <a> style picture"] * 3
    assert Concept("<a>", PICTURES, template="{word} at home").prompts() == ["<a> at home"] * 3


def test_captions_keep_their_order_and_get_the_word():
    captions = ("{word} in blue", "a photo of <a>", "near {word}, {word}")
    concept = Concept("<a>", PICTURES, captions=captions)
    assert concept.prompts() == ["<a> in blue", "a photo of <a>", "near <a>, <a>"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_wrong_number_of_captions_is_refused(count: int):
    with pytest.raises(ConceptError, match=f"3 pictures but {count} captions.*one caption per picture, or none"):
        Concept("<a>", PICTURES, captions=("{word}",) * count)


@pytest.mark.parametrize(
    "texts",
    [{"template": "a photo"}, {"template": "masks"}, {"captions": ("{word}", "a photo of skson", "{word}")}],
)
def test_a_text_that_does_not_mention_the_word_is_refused(texts: dict):
    wrong = texts.get("template") or texts["captions"][1]
    with pytest.raises(ConceptError, match=re.escape(f"'{wrong}' does not mention the new word") + ".*'sks'"):
        Concept("sks", PICTURES, **texts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_picture_with_one_value_that_is_not_finite_is_refused(bad: float):
    pictures = PICTURES.clone()
    pictures[1, 2, 3, 4] = bad
    with pytest.raises(ConceptError, match="values that are not finite"):
        Concept("<a>", pictures)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 8, 8), (2, 8, 8, 3)])
def test_tensors_of_a_wrong_shape_are_refused_with_it(shape: tuple[int, ...]):
    with pytest.raises(ConceptError, match=re.escape(str(shape))):
        Concept("<a>", torch.zeros(shape))


def test_a_concept_needs_a_picture():
    with pytest.raises(ConceptError, match="at least one picture"):
        Concept("<a>", PICTURES[:0])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConceptError, match="'object' or 'style', not 'face'"):
        Concept("<a>", PICTURES, "face")


@pytest.mark.parametrize("count", [-1, 17])
def test_a_negative_or_too_large_number_of_vectors_is_refused(count: int):
    with pytest.raises(ConceptError, match=f"1 to 16 vectors, or 0 for auto, not {count}"):
        Concept("<a>", PICTURES, vectors=count)
    assert Concept("<a>", PICTURES, vectors=16).vectors == 16


def test_a_token_takes_as_many_places_as_it_has_vectors():
    token = ConceptToken("<a>", {"clip_l": torch.zeros(1, 3, 4), "clip_g": torch.zeros(1, 3, 8)})
    assert token.words == 3


@pytest.mark.parametrize(
    "vectors",
    [
        {},
        {"clip_l": torch.zeros(3, 4)},
        {"clip_l": torch.zeros(1, 2, 4), "clip_g": torch.zeros(1, 3, 8)},
        {"clip_l": torch.zeros(1, 2, 4), "clip_g": torch.zeros(16, 2, 8)},
        {"clip_l": torch.zeros(1, 2, 4), "clip_g": torch.zeros(2, 8)},
    ],
)
def test_vectors_of_mismatched_shapes_are_refused(vectors: dict):
    with pytest.raises(ConceptError, match=re.escape("expected (layers, words, width) each")):
        ConceptToken("<a>", vectors)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<my-cat> and <my-dog>", []),
        ("<My-Cat>", ["The museum does not show <My-Cat>. Did you mean <my-cat>?"]),
        ("a <my-ct>, <my-ct>", ["The museum does not show <my-ct>. Did you mean <my-cat>?"]),
        ("<zebra>", ["The museum does not show <zebra>. It shows: <my-cat>, <my-dog>."]),
        ("<lora:name:1> 1 < 2 > 0 <a b> <3", []),
    ],
)
def test_unknown_words_are_named_with_the_nearest_known_one(prompt: str, said: list[str]):
    assert unknown_words(prompt, ["<my-cat>", "<my-dog>"]) == said
