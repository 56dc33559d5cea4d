"""Context preservation measures how far keys and values of other prompts move, and limits it."""

import pytest
import torch
from torch import Tensor

from clora_core.method.regularizers import ContextPreservation
from clora_core.method.step import Past, Setting
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank, mean_square
from clora_core.model.moments import preserved_moments
from clora_core.model.projections import Projection
from clora_core.model.text_states import AT_ONCE, second_moment, text_states
from clora_core.museum.museum import Museum
from tests.small import museum_of, random_deltas, setting_with, short, small_concept, step_with, taught


def setting_of(base: Base, museum: Museum) -> Setting:
    prompts = [exhibit.prompt for exhibit in museum.exhibits]
    return setting_with(Past(total=museum.dense(), prompts=prompts, tokens=museum.tokens), base=base)


def states_one_by_one(base: Base, museum: Museum) -> list[tuple[float, list[Tensor]]]:
    """The states of everyday and of old prompts, one vector per position, encoded one prompt at a time, with shares:
    of old prompts, the words have as much as all the rest."""
    everyday = [state for text in base.family.captions for state in base.encode_prompts([text], ()).states[0]]
    if not museum.exhibits:
        return [(1.0, everyday)]
    at_words, others = [], []
    for exhibit in museum.exhibits:
        encoded = base.encode_prompts([exhibit.prompt], museum.tokens)
        for state, word in zip(encoded.states[0], encoded.places[exhibit.word][0], strict=True):
            (at_words if word else others).append(state)
    return [(0.5, everyday), (0.25, at_words), (0.25, others)]


def naive_share(base: Base, projection: Projection, delta: Tensor, groups: list[tuple[float, list[Tensor]]]) -> float:
    """E‖Δ s‖² / E‖W s‖² by a loop."""
    weight = base.slots[projection].weight.detach()

    def mean(matrix: Tensor) -> float:
        return sum(share * sum((matrix @ s).square().sum().item() for s in own) / len(own) for share, own in groups)

    return mean(delta) / mean(weight)


def test_the_mean_square_of_the_factors_matches_the_dense_delta():
    rng = torch.Generator().manual_seed(0)
    up, down, states = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((7, 2), (2, 5), (40, 5)))
    up.requires_grad_(), down.requires_grad_()
    ours = mean_square(LowRank(up, down), states.T @ states / len(states))
    naive = torch.stack([(up @ down @ s).square().sum() for s in states]).mean()
    torch.testing.assert_close(ours, naive)
    for one, other in zip(torch.autograd.grad(ours, (up, down)), torch.autograd.grad(naive, (up, down)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("words", [(), ("<one>", "<two>")])
def test_the_term_is_the_relative_change_of_keys_and_values(base: Base, words: tuple[str, ...]):
    museum = museum_of(base, *words)
    groups = states_one_by_one(base, museum)
    deltas = random_deltas(base)
    expected = [naive_share(base, projection, delta.dense(), groups) for projection, delta in deltas.items()]
    term = ContextPreservation(weight=3).begin(setting_of(base, museum))
    assert term(step_with(deltas)).item() == pytest.approx(3 * sum(expected) / len(expected), rel=1e-3)


def test_all_earlier_prompts_have_the_same_weight(base: Base):
    """A layer-wise word multiplies the states of every prompt in its batch of 16, but not their weight."""
    rng = torch.Generator().manual_seed(0)
    layers = [6, *[1] * AT_ONCE]
    words = [
        ConceptToken(f"<o{number}>", {"clip_l": torch.randn(count, 1, 128, generator=rng)})
        for number, count in enumerate(layers)
    ]
    prompts = [f"a photo of {token.word}" for token in words]
    alone = [base.encode_prompts([prompt], words).states.reshape(-1, 128) for prompt in prompts]
    naive = torch.stack([states.T @ states / len(states) for states in alone]).mean(0)
    states, _ = text_states(base, prompts, words)
    torch.testing.assert_close(second_moment([(1.0, states)]), naive, rtol=1e-4, atol=1e-5)


def test_reference_sizes_are_measured_on_the_current_model(base: Base):
    _, plain = preserved_moments(base, (), ())
    with attached(base, {projection: 2 * module.weight.detach() for projection, module in base.slots.items()}):
        _, thrice = preserved_moments(base, (), ())
    for projection, size in plain.items():
        assert thrice[projection] == pytest.approx(9 * size, rel=1e-3)


def test_learning_with_the_term_moves_old_prompts_much_less(base: Base):
    museum = museum_of(base, "<old>", recipe=short())
    shares = {}
    for weight in (0.0, 100.0):
        losses: list[float] = []
        recipe = short(ContextPreservation(weight), steps=12, clip_norm=100.0)
        after = taught(
            base,
            museum,
            small_concept("<new>", seed=3),
            recipe,
            report=lambda progress, losses=losses: losses.append(progress.losses["context_preservation"]),
        )
        groups = states_one_by_one(base, museum)
        deltas = after.exhibit("<new>").deltas
        shares[weight] = [naive_share(base, projection, delta.dense(), groups) for projection, delta in deltas.items()]
    mean = {weight: sum(values) / len(values) for weight, values in shares.items()}
    assert mean[100.0] < 0.1 * mean[0.0]
    assert losses[0] == 0 and losses[-1] > 0
    assert max(shares[100.0]) <= len(shares[100.0]) * mean[100.0]
