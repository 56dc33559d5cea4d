"""A gated delta acts at its word's places and nowhere else."""

import pytest
import torch
from torch import Tensor

from clora_core.method.recipe import Recipe
from clora_core.model.attach import attached
from clora_core.model.attachment import Gate
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.museum.museum import Exhibit, Museum, viewing
from tests.small import LATENT_SHAPE, museum_of, predictions, random_deltas, short, small_concept, taught

PROMPTS = ["a photo of <one> in the snow", "<one> and a cat and <one>", "a photo of a cat"]


def token(word: str = "<one>", *, words: int = 2) -> ConceptToken:
    return ConceptToken(word, {"clip_l": torch.randn(1, words, 128, generator=torch.Generator().manual_seed(1))})


def answers(base: Base, prompts: list[str], tokens: list[ConceptToken]) -> Tensor:
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(5)).expand(len(prompts), -1, -1, -1)
    with torch.no_grad():
        times = torch.full((len(prompts),), 500)
        return base.predict(latents, times, base.encode_prompts(prompts, tokens))


def test_places_mark_the_positions_of_the_words_vectors(base: Base):
    places = base.encode_prompts(PROMPTS, [token(), token("<two>")]).places
    assert set(places) == {"<one>"}, "the other word is in no prompt"
    where = [row.nonzero().flatten().tolist() for row in places["<one>"]]
    assert where == [[4, 5], [1, 2, 7, 8], []], "the start comes first; <one> takes two places"


def test_rows_of_a_conditioning_keep_their_places(base: Base):
    conditioning = base.encode_prompts(PROMPTS, [token()])
    rows = torch.tensor([2, 0, 0])
    torch.testing.assert_close(conditioning[rows].places["<one>"], conditioning.places["<one>"][rows])
    assert conditioning[1:2].places["<one>"].shape[0] == 1


@pytest.mark.parametrize("onwards", [False, True])
def test_keys_and_values_change_only_at_the_places_of_the_gate(base: Base, onwards: bool):
    deltas = random_deltas(base, size=1)
    projection = next(iter(deltas))
    calls: list[tuple[Tensor, Tensor]] = []
    with attached(base, deltas, Gate("<one>", onwards=onwards)):
        listener = base.slots[projection].module.register_forward_hook(lambda _, x, y: calls.append((x[0], y)))
        answers(base, PROMPTS, [token()])
        listener.remove()
    states, moved = calls[0]
    by = moved - base.slots[projection].module(states)
    expected = states @ deltas[projection].dense().T
    first, places = [4, 1, None], [[4, 5], [1, 2, 7, 8], []]
    for row in range(3):
        for place in range(states.shape[1]):
            open_here = place in places[row] or (onwards and first[row] is not None and place >= first[row])
            target = expected[row, place] if open_here else torch.zeros_like(by[row, place])
            torch.testing.assert_close(by[row, place], target, rtol=1e-4, atol=1e-4)


def test_a_prompt_without_the_word_gives_the_bases_prediction_bit_for_bit(base: Base):
    plain = answers(base, PROMPTS[2:], [])
    alone = predictions(base)
    with attached(base, random_deltas(base, size=1), Gate("<one>")):
        assert torch.equal(predictions(base), alone)
        assert torch.equal(answers(base, PROMPTS[2:], [token()]), plain)
        assert not torch.equal(answers(base, PROMPTS[:1], [token()]), answers(base, PROMPTS[2:], []))


def test_word_gated_learning_forgets_nothing(base: Base):
    recipe = short(steps=4, applied="word")
    museum = museum_of(base, "<one>", recipe=recipe)
    prompt = ["a photo of <one>"]
    with viewing(base, museum.dense(), museum.gated):
        before, plain = answers(base, prompt, list(museum.tokens)), predictions(base)
    assert torch.equal(plain, predictions(base)), "prompts without a word are the base's own"
    longer = taught(base, museum, small_concept("<two>", seed=9), recipe)
    with viewing(base, longer.dense(), longer.gated):
        assert torch.equal(answers(base, prompt, list(longer.tokens)), before)
        assert torch.equal(predictions(base), plain)
    assert not torch.equal(before, answers(base, prompt, list(museum.tokens))), "but the delta does act"


def test_gated_and_ungated_exhibits_add_up(base: Base):
    everywhere = Exhibit(token("<all>"), random_deltas(base), Recipe())
    gated = Exhibit(token(), random_deltas(base, seed=1), Recipe(applied="onwards"))
    museum = Museum(base.fingerprint, (everywhere, gated))
    strengths = {"<one>": 0.5, "<all>": 2.0}
    with viewing(base, museum.dense(strengths), museum.gated, strengths):
        ours = answers(base, PROMPTS, list(museum.tokens))
    twice = {projection: delta.scaled(2.0) for projection, delta in everywhere.deltas.items()}
    half = {projection: delta.scaled(0.5) for projection, delta in gated.deltas.items()}
    with attached(base, twice), attached(base, half, Gate("<one>", onwards=True)):
        torch.testing.assert_close(ours, answers(base, PROMPTS, list(museum.tokens)), rtol=1e-4, atol=1e-5)
