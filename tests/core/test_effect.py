"""What is said of a learning's effect is what one would measure by hand, and is nothing where nothing was learned."""

import dataclasses

import pytest
import torch

from clora_core.concept import ConceptToken
from clora_core.effect import ASKED, effect
from clora_core.learn import learn
from clora_core.low_rank import LowRank
from clora_core.measure import overlap_matrix
from clora_core.museum import Exhibit, Museum
from clora_core.start import start_vectors

from .small import C_LORA, museum_of, random_deltas, short, small_base, small_concept

RECIPE = short(C_LORA)
NEW = small_concept("<new>", seed=9)


def untaught(base) -> Exhibit:
    """The new word as it starts, with deltas of zero."""
    nothing = {p: LowRank(torch.zeros(p.shape[0], 1), torch.ones(1, p.shape[1])) for p in base.modules}
    return Exhibit(ConceptToken("<new>", start_vectors(base, NEW)), nothing, RECIPE)


def test_where_nothing_is_learned_nothing_moves():
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    found = effect(base, museum, untaught(base), NEW, RECIPE)
    assert found.loss_before == found.loss_after > 0
    assert found.drift == {"<one>": 0, "<two>": 0}
    assert found.overlap == pytest.approx({"<one>": 0, "<two>": 0})


def test_learning_lowers_the_loss_on_its_own_pictures():
    base = small_base()
    recipe = short(C_LORA, steps=20, batch_size=4)
    museum = learn(base, Museum(base.fingerprint), NEW, recipe)
    found = effect(base, Museum(base.fingerprint), museum.exhibits[-1], NEW, recipe)
    assert found.loss_after < found.loss_before
    assert found.drift == found.overlap == {}


def test_the_drift_of_an_old_word_grows_with_the_delta_and_a_gated_one_leaves_it_alone():
    base = small_base()
    museum = museum_of(base, "<one>")

    def drift(size: float, applied: str = "everywhere") -> float:
        recipe = dataclasses.replace(RECIPE, applied=applied)
        new = dataclasses.replace(untaught(base), deltas=random_deltas(base, size=size), recipe=recipe)
        return effect(base, museum, new, NEW, recipe).drift["<one>"]

    assert 0 < drift(0.01) < drift(0.1)
    assert drift(0.1, "at its word") == 0


def test_the_drift_is_the_relative_distance_of_the_predictions():
    """Of a base whose predictions are all one number, and a delta that moves it by a quarter."""
    base = small_base()
    museum = museum_of(base, "<one>")
    new = dataclasses.replace(untaught(base), deltas=random_deltas(base))

    class Level:
        """The same base, but it predicts 4 everywhere, and 5 with the new deltas attached."""

        def __getattr__(self, name: str):
            return getattr(base, name)

        def predict(self, noisy, timesteps, conditioning):
            hooks = sum(len(module._forward_hooks) for module in base.modules.values())
            return torch.full_like(noisy, 5.0 if hooks > len(base.modules) else 4.0)

    found = effect(Level(), museum, new, NEW, RECIPE)
    assert found.drift["<one>"] == pytest.approx(0.25)


def test_overlaps_are_those_of_the_matrix():
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    new = dataclasses.replace(untaught(base), deltas=random_deltas(base))
    matrix = overlap_matrix(museum.with_exhibit(new))
    found = effect(base, museum, new, NEW, RECIPE).overlap
    assert [found["<one>"], found["<two>"]] == pytest.approx(matrix[2, :2].tolist())


def test_of_many_exhibits_some_are_asked_and_no_hook_is_left_behind():
    base = small_base()
    one = museum_of(base, "<one>").exhibits[0]
    words = [f"<w{number}>" for number in range(20)]
    many = tuple(
        dataclasses.replace(one, token=dataclasses.replace(one.token, word=word), prompt=word) for word in words
    )
    found = effect(base, Museum(base.fingerprint, many), untaught(base), NEW, RECIPE)
    assert len(found.drift) == ASKED and [*found.drift][:: ASKED - 1] == ["<w0>", "<w19>"]
    assert not any(module._forward_hooks for module in base.modules.values())
