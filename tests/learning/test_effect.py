"""The effect of a learning matches known predictions, and is zero if nothing was learned."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from clora_core.learning.effect import ASKED, effect, passes
from clora_core.learning.learn import Learning
from clora_core.learning.start import start_vectors
from clora_core.model.base import Conditioning
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.museum.museum import Exhibit, Museum
from clora_core.museum.overlap import overlap_matrix
from tests.small import C_LORA, museum_of, random_deltas, short, small_base, small_concept, taught

RECIPE = short(C_LORA)
NEW = small_concept("<new>", seed=9)


def untaught(base) -> Exhibit:
    """The new word as it starts, with deltas of zero."""
    nothing = {p: LowRank(torch.zeros(p.shape[0], 1), torch.ones(1, p.shape[1])) for p in base.slots}
    return Exhibit(ConceptToken("<new>", start_vectors(base, NEW)), nothing, RECIPE)


def test_an_untrained_concept_has_no_effect():
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    found = effect(Learning(base, museum, (NEW,), RECIPE), untaught(base))
    assert found.loss_before == found.loss_after > 0
    assert found.moved == {"<one>": 0, "<two>": 0}
    assert found.overlap == pytest.approx({"<one>": 0, "<two>": 0})


def test_learning_lowers_the_loss_on_its_own_pictures():
    base = small_base()
    recipe = short(C_LORA, steps=20, batch_size=4)
    museum = taught(base, Museum(base.fingerprint), NEW, recipe)
    found = effect(Learning(base, Museum(base.fingerprint), (NEW,), recipe), museum.exhibits[-1])
    assert found.loss_after < found.loss_before
    assert found.moved == found.overlap == {}


def test_larger_deltas_move_old_words_more_and_gated_ones_do_not():
    base = small_base()
    museum = museum_of(base, "<one>")

    def moved(size: float, applied: str = "everywhere") -> float:
        recipe = dataclasses.replace(RECIPE, applied=applied)
        new = dataclasses.replace(untaught(base), deltas=random_deltas(base, size=size), recipe=recipe)
        return effect(Learning(base, museum, (NEW,), recipe), new).moved["<one>"]

    assert 0 < moved(0.01) < moved(0.1)
    assert moved(0.1, "word") == 0


class KnownPredictions:
    """A base that predicts one number per prompt, and another one if more than the museum's deltas are attached."""

    def __init__(self, base) -> None:
        self.base = base
        self.before = {"": 10.0, "<one>": 14.0, "<two>": 20.0, "<new>": 50.0}
        self.after = {"": 11.0, "<one>": 13.0, "<two>": 25.0, "<new>": 3.0}
        alphas = base.schedule.levels
        clean, nothing = (lambda latents, *_: latents), (lambda latents, *_: torch.zeros_like(latents))
        self.schedule = SimpleNamespace(levels=alphas, noised=clean, target=nothing)

    def __getattr__(self, name: str):
        return getattr(self.base, name)

    def encode_prompts(self, prompts, tokens) -> Conditioning:
        words = [next((word for word in self.before if word and word in prompt), "") for prompt in prompts]
        return Conditioning(torch.tensor([[*self.before].index(word) for word in words]).view(-1, 1, 1))

    def predict(self, noisy, timesteps, conditioning):
        """At timesteps from 500 on, the prediction for the new word stays as before."""
        old, new = torch.tensor([*self.before.values()]), torch.tensor([*self.after.values()])
        numbers = (new if len(self.base.attachments) > 1 else old)[conditioning.states.flatten()]
        numbers = torch.where((conditioning.states.flatten() == 3) & (timesteps >= 500), 50.0, numbers)
        return numbers.view(-1, 1, 1, 1).expand(noisy.shape)


def test_the_effect_follows_from_the_predictions():
    base = small_base()
    new = dataclasses.replace(untaught(base), deltas=random_deltas(base))
    found = effect(Learning(KnownPredictions(base), museum_of(base, "<one>", "<two>"), (NEW,), RECIPE), new)
    assert found.moved == pytest.approx({"<one>": 1 / 4, "<two>": 5 / 10})
    assert (found.loss_before, found.loss_after) == pytest.approx((50**2, (50**2 + 3**2) / 2))


def test_every_pass_is_reported_and_a_report_can_stop_it():
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    learning = Learning(base, museum, (NEW,), RECIPE)
    reported: list[tuple[int, int]] = []
    effect(learning, untaught(base), lambda done, of: reported.append((done, of)))
    done = [count for count, _ in reported]
    assert done == sorted(set(done)) and {of for _, of in reported} == {passes(museum)} == {done[-1]}

    def stop(done: int, of: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        effect(learning, untaught(base), stop)
    assert not any(slot.module._forward_hooks for slot in base.slots.values())


def test_overlaps_match_the_overlap_matrix():
    base = small_base()
    museum = museum_of(base, "<one>", "<two>")
    new = dataclasses.replace(untaught(base), deltas=random_deltas(base))
    matrix = overlap_matrix(museum.with_exhibits(new))
    found = effect(Learning(base, museum, (NEW,), RECIPE), new).overlap
    assert [found["<one>"], found["<two>"]] == pytest.approx(matrix[2, :2].tolist())


def test_only_some_of_many_exhibits_are_measured_and_no_hook_is_left():
    base = small_base()
    one = museum_of(base, "<one>").exhibits[0]
    words = [f"<w{number}>" for number in range(20)]
    many = tuple(
        dataclasses.replace(one, token=dataclasses.replace(one.token, word=word), prompt=word) for word in words
    )
    found = effect(Learning(base, Museum(base.fingerprint, many), (NEW,), RECIPE), untaught(base))
    assert len(found.moved) == ASKED and [*found.moved][:: ASKED - 1] == ["<w0>", "<w19>"]
    assert not any(slot.module._forward_hooks for slot in base.slots.values())
