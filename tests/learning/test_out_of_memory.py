"""A step that does not fit into memory: nothing is lost, and the error says what to change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from clora_core.errors import LearningError
from clora_core.learning.fitting import computed, lighter, lighter_after
from clora_core.learning.key import learning_key
from clora_core.learning.state import LearningState, OutOfMemoryError
from clora_core.method.draft import AUTOMATIC, Draft
from clora_core.method.recipe import Recipe
from clora_core.model.base import Base
from clora_core.museum.museum import Museum
from tests.small import C_LORA, base_of, same_bits, short, small_concept, small_starter, taught, tensors_of


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


FULL: dict[str, Callable[[], object]] = {
    "CPU": lambda: torch.empty(2**50),
    "GPU": on_a_gpu,
    "Python": lambda: bytes(2**60),
}


@contextmanager
def full_at(module: torch.nn.Module, call: int, fail: Callable[[], object]) -> Iterator[None]:
    """While entered, memory is full at this call of the module, counted from 1."""
    left = call

    def hook(*inputs: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            fail()

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("where", FULL)
@pytest.mark.parametrize("part", [1, 2])
def test_a_full_memory_keeps_the_finished_steps(where: str, part: int):
    """part: of the third update's two."""
    starter, recipe = small_starter(), short(C_LORA, steps=4, accumulation=2, checkpointing=True)
    base, steps = base_of(starter), []
    museum = Museum(base.fingerprint)
    whole = taught(base, museum, small_concept(), recipe)
    with full_at(starter.unet, 4 + part, FULL[where]), pytest.raises(OutOfMemoryError, match="at step 3") as stop:
        taught(base, museum, small_concept(), recipe)
    state = stop.value.state
    assert state.step == 2 and isinstance(stop.value, LearningError) and isinstance(stop.value, torch.OutOfMemoryError)
    resumed = taught(base, museum, small_concept(), recipe, resume=state, report=lambda p: steps.append(p.step))
    assert steps == [3, 4]
    assert same_bits(resumed, whole)


def test_checkpointing_can_be_turned_on_in_the_middle(base: Base):
    recipe, concept, museum = short(C_LORA, steps=4), small_concept(), Museum(base.fingerprint)
    states: list[LearningState] = []
    whole = taught(base, museum, concept, recipe, report=lambda progress: states.append(progress.snapshot()))
    saving = replace(recipe, checkpointing=True)
    resumed = taught(base, museum, concept, saving, resume=states[1])
    for name, value in tensors_of(resumed).items():
        torch.testing.assert_close(value, tensors_of(whole)[name], rtol=1e-3, atol=1e-5)
    assert resumed.exhibits[0].recipe == saving
    assert learning_key(base, museum, [concept], saving) == learning_key(base, museum, [concept], recipe)


def test_settings_become_lighter_one_by_one_with_as_many_pictures_per_update():
    recipe, found = Recipe(batch_size=6, accumulation=2), []
    while recipe := lighter(recipe):
        found.append(computed(recipe))
    assert found == [
        "fp32, batch 6 ×2, checkpointing",
        "fp32, batch 3 ×4, checkpointing",
        "fp32, batch 1 ×12, checkpointing",
    ]


@pytest.mark.parametrize(
    ("recipe", "advice"),
    [
        (short(), "Turn on checkpointing: training then goes on"),
        (
            short(checkpointing=True, batch_size=4, accumulation=3),
            "Set batch_size to 2 and accumulation to 6: training",
        ),
        (short(checkpointing=True, batch_size=1), "Set precision to bf16: training then starts over"),
        (short(checkpointing=True, batch_size=1, precision="bf16"), "Use smaller pictures: training then starts over"),
    ],
    ids=["checkpointing", "batch", "precision", "pictures"],
)
def test_the_error_names_the_next_smaller_setting(recipe: Recipe, advice: str):
    starter = small_starter()
    base = base_of(starter)
    with full_at(starter.unet, 1, FULL["CPU"]), pytest.raises(OutOfMemoryError) as stop:
        taught(base, Museum(base.fingerprint), small_concept(), recipe)
    assert advice in str(stop.value) and stop.value.state.step == 0


def test_open_numbers_become_lighter_by_themselves_if_no_step_is_lost():
    recipe = Recipe(batch_size=4)
    early, late = (OutOfMemoryError("full", LearningState("", step, {})) for step in (0, 7))
    nothing, all_but_batch = Draft(recipe), Draft(recipe, frozenset(AUTOMATIC) - {"batch_size", "accumulation"})
    assert lighter_after(late, nothing, recipe) == lighter(recipe)
    saving = replace(recipe, checkpointing=True)
    assert lighter_after(early, all_but_batch, saving) == lighter(saving)
    for error, draft, lost in (
        (late, nothing, saving),  # another batch size would start over
        (early, Draft.of(saving), saving),
        (early, all_but_batch, recipe),
        (early, Draft(recipe, frozenset({"accumulation"})), saving),
        (early, nothing, replace(saving, batch_size=1)),
    ):
        with pytest.raises(OutOfMemoryError, match="full"):
            lighter_after(error, draft, lost)
