"""Word fit: what was trained at the words becomes ordinary deltas that do the same there, and little elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clora_core.errors import Cancelled, RecipeError
from clora_core.learning import word_fit
from clora_core.learning.learn import Learning
from clora_core.learning.state import LearningState
from clora_core.learning.word_fit import prompts_with
from clora_core.method.recipe import Recipe, guarding
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken, mentions
from clora_core.model.low_rank import LowRank, Sketch
from clora_core.model.text_states import AT_ONCE
from clora_core.museum.museum import Exhibit, Museum
from tests.small import museum_of, same_bits, short, small_concept, taught

WEIGHT = 4.0
FITTED = short(word_fit=WEIGHT)
GATED = short(applied="word")


def rows_of(base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> tuple[Tensor, Tensor]:
    """The text states at the words, and all others, (n, width)."""
    at, elsewhere = [], []
    for prompt in prompts:
        conditioning = base.encode_prompts([prompt], tokens)
        at_word = conditioning.at_words()[0]
        at.append(conditioning.states[0][at_word])
        elsewhere.append(conditioning.states[0][~at_word])
    return torch.cat(at).detach().double(), torch.cat(elsewhere).detach().double()


def least_squares(delta: Tensor, groups: Sequence[tuple[float, Tensor, bool]]) -> Tensor:
    """The matrix that answers the rows of each group (weight, rows, whether at the words) as delta does, or with 0."""
    rows = torch.cat([(weight / len(own)) ** 0.5 * own for weight, own, _ in groups])
    wanted = [(weight / len(own)) ** 0.5 * own @ delta.T * at_words for weight, own, at_words in groups]
    width = rows.shape[1]
    ridge = (word_fit.RIDGE * rows.square().sum() / width).sqrt() * torch.eye(width, dtype=rows.dtype)
    wanted.append(torch.zeros(width, len(delta), dtype=rows.dtype))
    return torch.linalg.lstsq(torch.cat([rows, ridge]), torch.cat(wanted)).solution.T


@pytest.fixture
def museum(base: Base) -> Museum:
    return museum_of(base, "<old>")


def test_it_is_the_least_squares_answer_to_what_was_trained_at_the_word(base: Base, museum: Museum):
    concept = small_concept("<new>", seed=1)
    (gated,) = taught(base, museum, concept, GATED).exhibits[1:]
    (fitted,) = taught(base, museum, concept, FITTED).exhibits[1:]
    assert gated.gate and fitted.gate is None
    assert all(torch.equal(fitted.token.vectors[name], gated.token.vectors[name]) for name in gated.token.vectors)

    at_word, rest = rows_of(base, prompts_with([concept], FITTED, base.family.captions), [fitted.token])
    _, everyday = rows_of(base, base.family.captions, ())
    earlier = rows_of(base, museum.prompts, museum.tokens)
    shares = [(0.5, everyday), (0.25, earlier[0]), (0.25, earlier[1]), (1.0, rest)]
    groups = [(1.0, at_word, True), *((WEIGHT * share, rows, False) for share, rows in shares)]
    for projection, delta in gated.deltas.items():
        expected = least_squares(delta.dense().double(), groups)
        found = fitted.deltas[projection]
        assert found.rank == delta.rank
        torch.testing.assert_close(found.dense().double(), expected, rtol=1e-2, atol=2e-3 * expected.abs().max().item())


def test_exact_sketches_give_what_whole_moments_give():
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randn(count, 32, generator=rng) for count in (12, 40, 24)]
    down = torch.randn(3, 32, generator=rng).double()
    at_words, *others = [own.T @ own / len(own) for own in rows]
    whole = word_fit._fit(at_words, others, WEIGHT)(down)
    at_words, *others = [Sketch(own.T / len(own) ** 0.5) for own in rows]
    torch.testing.assert_close(word_fit._fit(at_words, others, WEIGHT)(down), whole, rtol=1e-4, atol=1e-5)


def test_every_prompt_has_its_word_and_each_concept_as_many():
    concepts = [small_concept("<one>"), small_concept("<two>", captions=("<two> in a boat",) * 4)]
    prompts = prompts_with(concepts, FITTED, ("a cat", "a dog on the grass"))
    found = [[prompt for prompt in prompts if mentions(prompt, concept.word)] for concept in concepts]
    assert sorted([*found[0], *found[1]]) == sorted(prompts) and "<two> in a boat" in found[1]
    assert {"<one>", "a <one>", "a photo of <one>"} <= set(found[0])
    put_in = {prompt.replace(" <one>", "").replace("<one> ", "") for prompt in found[0] if "a <one>" != prompt}
    assert {"a cat", "a dog on the grass"} <= put_in
    assert prompts == prompts_with(concepts, FITTED, ("a cat", "a dog on the grass"))


def test_captions_with_an_earlier_word_are_left_out_and_lines_are_apart():
    concept = small_concept("<new>", captions=("<new> in a boat\na red <new>", "<new> beside <old>", "<new>", ""))
    prompts = prompts_with([concept], replace(FITTED, caption_lines=True), ("a cat",), ["<old>"])
    assert {"<new> in a boat", "a red <new>"} <= set(prompts) and not any("<old>" in prompt for prompt in prompts)


def test_concepts_that_are_learned_together_act_at_each_word(base: Base, museum: Museum):
    one, two = small_concept("<one>", seed=1), small_concept("<two>", seed=2)
    exhibits: tuple[Exhibit, ...] = taught(base, museum, two, FITTED, companions=[one]).exhibits[1:]
    assert not exhibits[0].deltas and exhibits[1].deltas

    def moved(prompt: str) -> float:
        at_word, _ = rows_of(base, [prompt], [exhibit.token for exhibit in exhibits])
        deltas = [delta.dense().double() for delta in exhibits[1].deltas.values()]
        return sum((at_word @ delta.T).square().sum(1).mean().item() for delta in deltas)

    _, everyday = rows_of(base, ["a photo of a cat"], ())
    plain = sum((everyday @ d.dense().double().T).square().sum(1).mean().item() for d in exhibits[1].deltas.values())
    assert min(moved("a photo of <one>"), moved("a photo of <two>")) > 4 * plain > 0


def test_what_is_kept_on_the_way_is_fitted_too(base: Base, museum: Museum):
    learning = Learning(base, museum, (small_concept("<new>", seed=1),), replace(FITTED, steps=3))
    kept: list[tuple[Exhibit, ...]] = []
    learning.run(report=lambda progress: kept.append(learning.exhibits_at(progress)))
    shorter = taught(base, museum, small_concept("<new>", seed=1), replace(FITTED, steps=2))
    assert same_bits(Museum(museum.base, kept[1]), Museum(museum.base, shorter.exhibits[1:]))


def test_it_can_be_stopped_while_it_reads_and_then_resumes_exactly(base: Base, museum: Museum):
    concept = small_concept("<new>", seed=1)
    learning = Learning(base, museum, (concept,), FITTED)
    states: list[LearningState] = []
    parts: list[tuple[int, int]] = []

    def reading(done: int, of: int) -> None:
        parts.append((done, of))
        if states and states[-1].step == FITTED.steps:
            raise Cancelled

    with pytest.raises(Cancelled):
        learning.run(report=lambda progress: states.append(progress.snapshot()), reading=reading)
    everyday = -(-len(base.family.captions) // AT_ONCE)
    assert parts[:everyday] == [(done, everyday) for done in range(1, everyday + 1)], "before the first step"
    assert parts[-1][0] == 1, "after the last"
    resumed = taught(base, museum, concept, FITTED, resume=states[-1])
    assert same_bits(resumed, taught(base, museum, concept, FITTED))


def test_weight_0_trains_ordinary_deltas(base: Base, museum: Museum):
    concept = small_concept("<new>", seed=1)
    assert same_bits(taught(base, museum, concept, guarding(FITTED, 0)), taught(base, museum, concept, short()))


@pytest.mark.parametrize(
    "change", [{"applied": "word"}, {"applied": "onwards"}, {"over": "shared"}, {"layer_wise": True}]
)
def test_it_is_for_new_deltas_that_act_everywhere(change: dict[str, Any]):
    with pytest.raises(RecipeError, match="word_fit"):
        Recipe(word_fit=1.0, **change)


def test_a_rank_of_0_has_nothing_to_fit(base: Base, museum: Museum):
    concept = small_concept("<new>", seed=1)
    assert not taught(base, museum, concept, replace(FITTED, rank=0)).exhibits[1].deltas


def test_the_fitted_deltas_are_low_rank_matrices_of_their_own(base: Base, museum: Museum):
    (fitted,) = taught(base, museum, small_concept("<new>", seed=1), FITTED).exhibits[1:]
    assert all(isinstance(delta, LowRank) and delta.down.dtype == torch.float32 for delta in fitted.deltas.values())
