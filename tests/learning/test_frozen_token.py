"""A frozen token: the word stands for known words, and the text encoder only runs before the first step."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from clora_core.cli import main
from clora_core.errors import ConceptError, RecipeError
from clora_core.learning.learn import Learning, Progress
from clora_core.learning.start import start
from clora_core.method.draft import Draft
from clora_core.method.recipe import RECIPES, Recipe, recipe_named
from clora_core.method.regularizers import ContextPreservation, Distillation
from clora_core.model.base import Conditioning
from clora_core.model.concept import ConceptToken
from clora_core.museum.file import load_museum, read_header, save_museum
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase
from tests.small import bits, museum_of, same_bits, short, small_base, small_concept, taught, tensors_of

FROZEN = {"token": "frozen"}
CAPTIONS = ("a photo of {word}", "{word} in the snow", "a photo of {word}", "a red hat on {word}")


@contextmanager
def encoded(base: DiffusersBase) -> Iterator[list[str]]:
    """Records every prompt that the text encoder reads."""
    texts: list[str] = []
    plain = base.encode_prompts

    def encode(prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        assert not torch.is_grad_enabled()
        texts.extend(prompts)
        return plain(prompts, tokens)

    base.encode_prompts = encode  # type: ignore[method-assign]
    try:
        yield texts
    finally:
        base.encode_prompts = plain  # type: ignore[method-assign]


@pytest.mark.parametrize("regularizer", [ContextPreservation(), Distillation()])
def test_every_caption_is_encoded_once_and_before_the_first_step(regularizer: ContextPreservation | Distillation):
    base = small_base()
    museum = museum_of(base, "<old>")
    concept, counts = small_concept(captions=CAPTIONS, start="red cat"), []
    recipe = short(regularizer, steps=4, **FROZEN)
    with encoded(base) as texts:
        taught(base, museum, concept, recipe, report=lambda progress: counts.append(len(texts)))
    assert len(set(counts)) == 1 and len(texts) == counts[0]
    own = [prompt for prompt in texts if "<one>" in prompt and "<old>" not in prompt]
    assert sorted(own) == sorted({caption.replace("{word}", "<one>") for caption in CAPTIONS})


def test_only_the_deltas_are_trained():
    base = small_base()
    concept = small_concept(start="red cat")
    trained = start(base, [concept.frozen()], short(**FROZEN), Museum(base.fingerprint))
    assert not any(name.startswith("token.") for name in trained.parameters())
    (exhibit,) = taught(base, Museum(base.fingerprint), concept, short(**FROZEN)).exhibits
    (vectors,) = exhibit.token.vectors.values()
    assert torch.equal(vectors[0], base.word_vectors("red cat")["clip_l"])
    assert exhibit.token.phrase == exhibit.facts["stands for"] == trained.token("<one>").phrase == "red cat"
    assert any(delta.up.abs().max() > 0 for delta in exhibit.deltas.values())


def test_the_word_has_the_states_of_its_phrase():
    base = small_base()
    museum = taught(base, Museum(base.fingerprint), small_concept(start="red cat"), short(**FROZEN))
    ours = base.encode_prompts(["a photo of <one> in the snow"], museum.tokens)
    theirs = base.encode_prompts(["a photo of red cat in the snow"], ())
    assert torch.equal(ours.states, theirs.states)
    assert ours.places["<one>"].sum() == 2


@pytest.mark.parametrize("word", ["<cat>", "cat"])
def test_without_a_start_the_word_stands_for_its_own_name(word: str):
    base = small_base()
    (exhibit,) = taught(base, Museum(base.fingerprint), small_concept(word), short(**FROZEN)).exhibits
    assert exhibit.token.phrase == word.strip("<>")
    (vectors,) = exhibit.token.vectors.values()
    assert torch.equal(vectors[0], base.word_vectors(word.strip("<>"))["clip_l"])


@pytest.mark.parametrize("numbers", [{}, {"caption_lines": True}, {"caption_dropout": 0.5}])
def test_encoding_captions_once_gives_the_same_result_as_every_time(numbers: dict[str, object]):
    base = small_base()
    captions = tuple(f"{caption}\nthe other {{word}}" for caption in CAPTIONS) if numbers else CAPTIONS
    concept = small_concept(captions=captions, start="red cat", vectors=0)
    still = short(steps=4, token_learning_rate=1e-30, **numbers)
    one = taught(base, Museum(base.fingerprint), concept, dataclasses.replace(still, token="frozen"))
    other = taught(base, Museum(base.fingerprint), concept, still)
    expected = tensors_of(other)
    for name, value in tensors_of(one).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_a_file_keeps_the_phrase_and_an_export_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = small_base()
    museum = taught(base, museum_of(base, "<old>"), small_concept(start="red cat"), short(**FROZEN))
    path = save_museum(museum, tmp_path / "m.safetensors")
    loaded = load_museum(path)
    assert same_bits(loaded, museum)
    assert [token.phrase for token in loaded.tokens] == ["", "red cat"]
    assert loaded.exhibits[1].recipe == museum.exhibits[1].recipe
    assert read_header(path).exhibits[0].recipe.to_json().keys() == Recipe().to_json().keys()
    assert "token" not in Recipe().to_json()
    assert main(["export", str(path), "--to", str(tmp_path / "plain")]) == 0
    assert "<one> stands for “red cat”" in capsys.readouterr().out
    with safe_open(tmp_path / "plain" / "loras" / "museum.safetensors", "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "<old>, red cat"
    assert main(["show", str(path)]) == 0
    assert "stands for red cat" in capsys.readouterr().out


def test_an_interrupted_learning_resumes_exactly():
    base, concept, states = small_base(), small_concept(start="red cat"), []

    def report(progress: Progress) -> None:
        states.append(progress.snapshot())

    recipe = short(ContextPreservation(), steps=4, **FROZEN)
    whole = taught(base, Museum(base.fingerprint), concept, recipe, report=report)
    resumed = taught(base, Museum(base.fingerprint), concept, recipe, resume=states[1])
    assert bits(tensors_of(whole)) == bits(tensors_of(resumed))
    assert not any("token." in name for name in states[1].tensors)


def test_the_phrase_is_in_the_notes_and_changes_the_key():
    base, museum = small_base(), Museum(small_base().fingerprint)
    keys = set()
    for token in ("learned", "frozen"):
        for first in ("", "red cat"):
            learning = Learning(base, museum, (small_concept(start=first),), short(token=token))
            keys.add(learning.key)
            said = " ".join(learning.notes)
            assert (f"stands for “{first or 'one'}”" in said) == (token == "frozen")
    assert len(keys) == 4


def test_two_words_cannot_stand_for_the_same_phrase():
    base = small_base()
    museum = taught(base, Museum(base.fingerprint), small_concept(start="red cat"), short(**FROZEN))
    with pytest.raises(ConceptError, match="<two> would stand for “red cat”, as <one> does"):
        Learning(base, museum, (small_concept("<two>", start="red cat"),), short(**FROZEN))


@pytest.mark.parametrize("numbers", [{"rank": 0}, {"shuffle_tags": True}, {"tag_dropout": 0.1}])
def test_recipes_that_do_not_suit_a_frozen_token_are_refused(numbers: dict[str, object]):
    with pytest.raises(RecipeError, match="token is 'frozen'; it must be learned with"):
        recipe_named("preservation", **numbers, **FROZEN)


def test_a_draft_can_choose_a_frozen_token():
    draft = Draft(RECIPES["preservation"]).with_numbers(token="frozen")
    assert draft.recipe.token == "frozen" and "token" in draft.chosen


def test_trained_vectors_are_refused_with_a_frozen_token():
    base = small_base()
    with pytest.raises(ConceptError, match="<one> has 2 vectors of its own to train, but a frozen token"):
        taught(base, Museum(base.fingerprint), small_concept(start="red cat", vectors=2), short(**FROZEN))
