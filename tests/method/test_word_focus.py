"""Word focus measures how far a delta moves the keys and values after its word, and nowhere else."""

from dataclasses import replace

import pytest
import torch

from clora_core.learning.start import first_token
from clora_core.method.recipe import Recipe, guarding
from clora_core.method.regularizers import ContextPreservation, WordFocus
from clora_core.method.regularizers.word_focus import rows_at
from clora_core.method.step import Past, Step
from clora_core.model.attach import recording_inputs
from clora_core.model.base import Base, Conditioning
from clora_core.model.chunks import groups_of
from clora_core.model.moments import preserved_moments
from clora_core.museum.museum import Museum
from tests.small import museum_of, random_deltas, setting_with, short, small_concept, step_with, taught


def step_reading(base: Base, conditioning: Conditioning, deltas) -> Step:
    """A step in which the network predicted from these prompts."""
    noisy = torch.zeros(len(conditioning.states), *base.family.latent_shape(8, 8))
    with recording_inputs(base) as passes:
        base.predict(noisy, torch.zeros(len(noisy), dtype=torch.long), conditioning)
    groups = [group for _, group in groups_of(conditioning)]
    return replace(step_with(deltas), conditioning=conditioning, inputs=list(zip(groups, passes, strict=True)))


@pytest.mark.parametrize("more", ["", " and a red cat" * 12], ids=["one length", "two lengths"])
def test_the_term_is_the_relative_change_after_the_word(more: str, base: Base):
    museum = museum_of(base, "<old>")
    past = Past(total=museum.dense(), prompts=[museum.exhibits[0].prompt], tokens=museum.tokens)
    token = first_token(base, small_concept("<new>"), Recipe())
    prompts, deltas = ["a photo of <new> beside <old>" + more, "<new>"], random_deltas(base)
    conditioning = base.encode_prompts(prompts, [*museum.tokens, token])
    assert (conditioning.lengths is not None) == bool(more)
    lengths = [conditioning.states.shape[1]] * 2 if conditioning.lengths is None else conditioning.lengths.tolist()
    _, sizes = preserved_moments(base, past.prompts, past.tokens)

    moved, count = dict.fromkeys(deltas, 0.0), 0
    for states, mask, length in zip(conditioning.states, conditioning.places["<new>"].tolist(), lengths, strict=True):
        for place, state in enumerate(states[:length]):
            if place > mask.index(True) and not mask[place]:
                count += 1
                for projection, delta in deltas.items():
                    moved[projection] += (delta.dense() @ state).square().sum().item()
    shares = [moved[projection] / count / sizes[projection] for projection in deltas]
    term = WordFocus(3.0).begin(setting_with(past, base=base))
    found = term(step_reading(base, conditioning, deltas))
    assert found.item() == pytest.approx(3 * sum(shares) / len(shares), rel=1e-4)


def test_what_fills_up_shorter_captions_does_not_count(base: Base):
    token, deltas = first_token(base, small_concept("<new>"), Recipe()), random_deltas(base)
    alone = base.encode_prompts(["a photo of <new>"], [token])
    tokens = alone.states.shape[1]
    filled = replace(
        alone,
        states=torch.cat([alone.states, torch.full_like(alone.states, 9.0)], 1),
        places={word: torch.cat([mask, torch.zeros_like(mask)], 1) for word, mask in alone.places.items()},
        lengths=torch.tensor([tokens]),
    )
    term = WordFocus().begin(setting_with(Past(), base=base))
    found, expected = (term(step_reading(base, each, deltas)).item() for each in (filled, alone))
    assert found == pytest.approx(expected, rel=1e-6) and expected > 0


def test_without_the_word_there_is_nothing_to_hold(base: Base):
    term = WordFocus().begin(setting_with(Past(), base=base))
    conditioning = base.encode_prompts(["a photo of a cat"], ())
    assert term(step_reading(base, conditioning, random_deltas(base))).item() == 0


def test_it_can_be_turned_off(base: Base):
    recipe = guarding(short(ContextPreservation(), WordFocus()), 0)
    terms = []
    taught(
        base,
        Museum(base.fingerprint),
        small_concept("<new>"),
        recipe,
        report=lambda progress: terms.append(progress.losses["word_focus"]),
    )
    assert terms == [0.0] * recipe.steps


def test_the_text_is_found_among_the_rows_of_a_picture_and_of_other_prompts():
    x, places = torch.arange(2 * 5 * 3.0).view(2, 5, 3), torch.tensor([[False, True, True], [True, False, False]])
    expected = torch.stack([torch.zeros(3), x[0, 1], x[0, 2], x[1, 0], torch.zeros(3), torch.zeros(3)])
    assert torch.equal(rows_at(x, places), expected)
    assert torch.equal(rows_at(x.view(1, 10, 3), places), expected)
