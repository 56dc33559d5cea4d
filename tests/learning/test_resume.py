"""An interrupted learning resumes exactly."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from clora_core.errors import BaseModelError, Cancelled, LearningError
from clora_core.learning.key import learning_key
from clora_core.learning.learn import Learning, Progress
from clora_core.learning.state import LearningState, StateError, load_state, save_state
from clora_core.method.recipe import Recipe
from clora_core.method.regularizers import Regularizer, Term
from clora_core.method.step import Setting, Step
from clora_core.model.base import Base
from clora_core.model.concept import Concept
from clora_core.museum.editing import edited
from clora_core.museum.museum import TOGETHER, Exhibit, Museum, learned_with
from tests.small import C_LORA, bits, museum_of, pixels_of, same_bits, short, small_base, small_concept, taught

PLAIN = short(C_LORA, steps=4)
ALL_AT_ONCE = short(
    C_LORA, steps=4, accumulation=2, flip=True, schedule="cosine", warmup=0.5, weight_decay=0.1, min_snr_gamma=5.0
)


@pytest.fixture(scope="module")
def first(base: Base) -> Museum:
    return museum_of(base, "<one>")


def stopped_at(base: Base, museum: Museum, recipe: Recipe, last: int) -> LearningState:
    """The state of a learning that was cancelled after `last` updates."""
    states: list[LearningState] = []

    def report(progress: Progress) -> None:
        if progress.step == last:
            states.append(progress.snapshot())
            raise Cancelled

    with pytest.raises(Cancelled):
        taught(base, museum, small_concept("<two>", seed=1), recipe, report=report)
    return states[0]


@pytest.mark.parametrize("recipe", [PLAIN, ALL_AT_ONCE], ids=["plain", "all at once"])
def test_resuming_at_any_step_equals_an_uninterrupted_run(base: Base, first: Museum, recipe: Recipe, tmp_path: Path):
    concept, losses = small_concept("<two>", seed=1), []
    whole = taught(base, first, concept, recipe, report=lambda progress: losses.append(progress.loss))
    for last in (1, 2, 3, 4):
        state = stopped_at(base, first, recipe, last)
        assert state.step == last and list(state.losses) == losses[:last]
        save_state(state, tmp_path / "state.safetensors")
        reports: list[Progress] = []
        loaded = load_state(tmp_path / "state.safetensors")
        resumed = taught(base, first, concept, recipe, resume=loaded, report=reports.append)
        assert same_bits(resumed, whole)
        assert resumed.exhibits[-1].facts == whole.exhibits[-1].facts
        assert [progress.step for progress in reports] == [1, 2, 3, 4][last:]
        assert [progress.loss for progress in reports] == losses[last:]


def test_resuming_in_fp16_keeps_the_loss_scale(base: Base, first: Museum):
    recipe = short(C_LORA, precision="fp16")
    whole = taught(base, first, small_concept("<two>", seed=1), recipe)
    state = stopped_at(base, first, recipe, 2)
    assert same_bits(taught(base, first, small_concept("<two>", seed=1), recipe, resume=state), whole)


def test_joint_learning_resumes_exactly(base: Base, first: Museum):
    """Also the words of companions, and whose turn it is."""
    one, two = small_concept("<also>", seed=2), small_concept("<two>", seed=1)
    states: list[LearningState] = []
    whole = taught(
        base, first, two, PLAIN, companions=[one], report=lambda progress: states.append(progress.snapshot())
    )
    for state in states:
        assert same_bits(taught(base, first, two, PLAIN, companions=[one], resume=state), whole)
    assert [learned_with(whole.exhibits, place) for place in range(3)] == [0, 2, 2]
    assert TOGETHER in whole.exhibits[1].facts and TOGETHER not in whole.exhibits[0].facts
    assert [learned_with(edited(whole, "move <also> 1")[0].exhibits, place) for place in range(3)] == [2, 1, 2]
    with pytest.raises(LearningError, match="another training"):
        taught(base, first, two, PLAIN, companions=[small_concept("<also>", seed=3)], resume=states[0])


def test_later_steps_do_not_change_a_snapshot(base: Base, first: Museum):
    kept: list[tuple[LearningState, dict[str, bytes]]] = []

    def report(progress: Progress) -> None:
        state = progress.snapshot()
        kept.append((state, bits(dict(state.tensors))))

    taught(base, first, small_concept("<two>", seed=1), PLAIN, report=report)
    assert len(kept) == 4
    for state, before in kept:
        assert bits(dict(state.tensors)) == before
    assert len({frozenset(before.items()) for _, before in kept}) == 4


def test_a_state_can_be_resumed_twice(base: Base, first: Museum):
    state = stopped_at(base, first, PLAIN, 2)
    before = bits(dict(state.tensors))
    runs = [taught(base, first, small_concept("<two>", seed=1), PLAIN, resume=state) for _ in range(2)]
    assert same_bits(*runs)
    assert bits(dict(state.tensors)) == before


@pytest.mark.parametrize(
    "other",
    [
        {"concept": small_concept("<two>", seed=9)},
        {"concept": small_concept("<three>", seed=1)},
        {"concept": small_concept("<two>", seed=1, token_seed=1)},
        {"concept": small_concept("<two>", seed=1, template="{word}")},
        {"recipe": short(C_LORA, steps=4, learning_rate=2e-2)},
        {"recipe": short(C_LORA, steps=4, seed=1)},
        {"recipe": short(steps=4)},
        {"museum": None},
    ],
)
def test_the_state_of_another_learning_is_refused(base: Base, first: Museum, other: dict):
    state = stopped_at(base, first, PLAIN, 1)
    inputs = {"museum": first, "concept": small_concept("<two>", seed=1), "recipe": PLAIN} | other
    inputs["museum"] = inputs["museum"] or Museum(base.fingerprint)
    assert learning_key(base, inputs["museum"], [inputs["concept"]], inputs["recipe"]) != state.key
    with pytest.raises(LearningError, match="belongs to another training"):
        taught(base, **inputs, resume=state)


WORD, MEMORY = "trained.token.<two>.clip_l", "optimizer.token.<two>.clip_l"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(WORD), f"it has no '{WORD}'"),
        (lambda tensors: tensors.update({"trained.token.<two>.clip_m": torch.zeros(1)}), "clip_m' is not"),
        (lambda tensors: tensors.update({WORD: torch.zeros(1, 1, 3)}), f"'{WORD}' is"),
        (lambda tensors: tensors[WORD].fill_(float("nan")), f"'{WORD}' is not"),
        (lambda tensors: tensors.update({f"{MEMORY}.exp_avg": torch.zeros(2)}), "clip_l.exp_avg' is not"),
        (lambda tensors: tensors[f"{MEMORY}.exp_avg_sq"].fill_(float("inf")), "exp_avg_sq' is not"),
        (lambda tensors: tensors.update({f"{MEMORY}.step": torch.tensor(1)}), "clip_l.step' is not"),
    ],
)
def test_a_state_with_wrong_tensors_is_refused(base: Base, first: Museum, change, said: str):
    state = stopped_at(base, first, PLAIN, 1)
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    change(tensors)
    for broken in (replace(state, tensors=tensors), replace(state, losses=())):
        expected = said if broken.losses else "of step 1, but it has 0 losses"
        with pytest.raises(StateError, match=expected):
            taught(base, first, small_concept("<two>", seed=1), PLAIN, resume=broken)


def test_the_key_includes_how_earlier_exhibits_were_learned(base: Base, first: Museum):
    """It decides the starting point and the prompts, even if no number differs."""
    (only,) = first.exhibits
    others = [replace(only, kind="style"), replace(only, recipe=replace(only.recipe, over="shared"))]
    museums = [first, *(Museum(first.base, (other,)) for other in others)]
    assert len({learning_key(base, museum, [small_concept("<two>")], PLAIN) for museum in museums}) == 3


def test_the_key_includes_every_number_of_earlier_exhibits(base: Base, first: Museum):
    """One changed bit of a vector or a factor, and the strength."""
    (only,) = first.exhibits
    tokens = [_nudged(vectors) for vectors in only.token.vectors.values()]
    others = [
        replace(only, token=replace(only.token, vectors={**only.token.vectors, n: t}))
        for n, t in zip(only.token.vectors, tokens, strict=True)
    ]
    for projection, delta in only.deltas.items():
        for changed in (replace(delta, up=_nudged(delta.up)), replace(delta, down=_nudged(delta.down))):
            others.append(replace(only, deltas={**only.deltas, projection: changed}))
    others.append(replace(only, strength=0.5))
    museums = [first, replace(first, exhibits=(replace(only),)), *(Museum(first.base, (other,)) for other in others)]
    keys = [learning_key(base, museum, [small_concept("<two>")], PLAIN) for museum in museums]
    assert keys[0] == keys[1] and len(set(keys)) == len(museums) - 1
    assert "digest" in vars(only), "it would be hashed again for every later exhibit"


def _nudged(values: Tensor) -> Tensor:
    values = values.clone()
    values.view(-1)[-1] = torch.nextafter(values.view(-1)[-1], torch.tensor(torch.inf))
    return values


def test_the_key_includes_the_noise_schedule(base: Base):
    """The fingerprint does not include the prediction, which a wrong option may have set."""
    bases = [base, small_base("epsilon"), small_base()]
    bases[2].schedule = replace(base.schedule, levels=base.schedule.levels**2)
    assert len({each.fingerprint for each in bases}) == 1
    keys = {learning_key(each, Museum(base.fingerprint), [small_concept()], PLAIN) for each in bases}
    assert len(keys) == 3


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(base: Base):
    reports: list[LearningState] = []
    recipe = short(learning_rate=1e30)
    with pytest.raises(
        LearningError, match=r"'<one>' stopped at step 2: the loss \(diffusion\).*lower learning rate"
    ) as stop:
        taught(base, Museum(base.fingerprint), small_concept(), recipe, report=lambda p: reports.append(p.snapshot()))
    state = stop.value.state
    assert state.step == len(reports) == 1
    assert state.losses == reports[0].losses and all(loss < float("inf") for loss in state.losses)
    assert bits(dict(state.tensors)) == bits(dict(reports[0].tensors))
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_pictures_with_huge_values_stop_at_the_first_step(base: Base):
    concept = Concept("<one>", pixels_of(small_concept()) * 1e30)
    with pytest.raises(LearningError, match=r"stopped at step 1: the loss \(diffusion\)") as stop:
        taught(base, Museum(base.fingerprint), concept, short())
    assert stop.value.state.step == 0 and stop.value.state.losses == ()


@dataclass(frozen=True)
class RootOfSquares(Regularizer):
    """A regularizer with a common mistake: the root of zero is zero, but its gradient is not finite."""

    name: ClassVar[str] = "root_of_squares"

    def begin(self, setting: Setting) -> Term:
        def term(step: Step) -> torch.Tensor:
            return torch.stack([delta.dense().square().sum() for delta in step.deltas.values()]).sqrt().sum()

        return term


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_before_any_update(base: Base, precision: str):
    recipe = short(RootOfSquares(), precision=precision)
    with pytest.raises(LearningError, match="'<one>' stopped at step 1: the gradient is not finite") as stop:
        taught(base, Museum(base.fingerprint), small_concept(), recipe)
    assert "so the model itself produces such numbers" in str(stop.value) and "learning rate" not in str(stop.value)
    assert ("precision fp32" in str(stop.value)) == (precision == "bf16")
    assert stop.value.state.step == 0
    assert all(tensor.isfinite().all() for tensor in stop.value.state.tensors.values())


def test_a_vae_with_latents_that_are_not_finite_is_refused(base: Base, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "encode_pictures", lambda pictures: torch.full((len(pictures), 4, 8, 8), torch.nan))
    with pytest.raises(BaseModelError, match=r"The VAE produces latents that are not finite\. Use another VAE"):
        taught(base, Museum(base.fingerprint), small_concept(), short())


def test_more_steps_continue_from_the_end_of_fewer(base: Base, first: Museum):
    """Bit for bit as in one run, if the learning rate does not depend on the number of steps."""
    concept, states = small_concept("<two>", seed=1), []
    taught(base, first, concept, replace(PLAIN, steps=2), report=lambda p: states.append(p.snapshot()))
    reports: list[int] = []
    longer = taught(base, first, concept, PLAIN, resume=states[-1], report=lambda p: reports.append(p.step))
    whole = taught(base, first, concept, PLAIN)
    assert reports == [3, 4] and same_bits(longer, whole)
    assert longer.exhibits[-1].facts == whole.exhibits[-1].facts and longer.exhibits[-1].recipe == PLAIN
    with pytest.raises(StateError, match="is of step 2, but the recipe has only 1 steps"):
        taught(base, first, concept, replace(PLAIN, steps=1), resume=states[-1])


@pytest.mark.parametrize("dependent", [{"schedule": "cosine"}, {"schedule": "linear"}, {"warmup": 0.5}])
def test_the_key_includes_the_steps_if_the_learning_rate_depends_on_them(base: Base, dependent: dict[str, object]):
    museum, concepts = Museum(base.fingerprint), [small_concept()]
    keys = {learning_key(base, museum, concepts, replace(PLAIN, **dependent, steps=steps)) for steps in (2, 4)}
    assert len(keys) == 2 and not replace(PLAIN, **dependent).open_ended


def test_intermediate_exhibits_equal_those_of_fewer_steps(base: Base, first: Museum):
    concept, kept = small_concept("<two>", seed=1), []
    learning = Learning(base, first, (concept,), PLAIN)
    learning.run(report=lambda p: kept.append(learning.exhibits_at(p)))
    (fewer,) = learning_of(base, first, concept, steps=2)
    assert kept[1][0].same_as(fewer) and (kept[1][0].recipe, kept[1][0].facts) == (fewer.recipe, fewer.facts)


def learning_of(base: Base, museum: Museum, concept: Concept, *, steps: int) -> tuple[Exhibit, ...]:
    return Learning(base, museum, (concept,), replace(PLAIN, steps=steps)).run()
