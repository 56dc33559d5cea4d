"""Learning: what changes, what stays unchanged, and that the same inputs give the same museum."""

import itertools
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clora_core.errors import BaseModelError, Cancelled, ConceptError
from clora_core.learning.learn import Progress, learn
from clora_core.learning.lesson import Lesson
from clora_core.learning.optimizer import Optimizer
from clora_core.learning.start import start
from clora_core.method.objective import diffusion_loss
from clora_core.method.regularizers import Regularizer, SelfRegularization, Term
from clora_core.method.step import Setting, Step
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Exhibit, Museum
from clora_core.starter.model import Starter
from tests.small import (
    C_LORA,
    base_of,
    bits,
    museum_of,
    predictions,
    random_deltas,
    same_bits,
    short,
    small_base,
    small_concept,
    small_starter,
    taught,
    tensors_of,
)


@dataclass(frozen=True)
class Broken(Regularizer):
    """A regularizer that fails in the second step."""

    name: ClassVar[str] = "broken"

    def begin(self, setting: Setting) -> Term:
        calls: list[Step] = []

        def term(step: Step) -> torch.Tensor:
            calls.append(step)
            if len(calls) == 2:
                raise ZeroDivisionError
            return torch.zeros(())

        return term


@pytest.fixture(scope="module")
def first(base: Base) -> Museum:
    """A museum of one learned exhibit."""
    return museum_of(base, "<one>")


@pytest.fixture(scope="module")
def second(base: Base, first: Museum) -> Museum:
    """The same museum with a second exhibit."""
    return taught(base, first, small_concept("<two>", seed=1), short(C_LORA))


def everything_of(starter: Starter) -> dict[str, bytes]:
    """Every parameter and buffer of the whole model, bit by bit."""
    named = {}
    for part in ("unet", "vae", "text_encoder"):
        named |= {f"{part}.{name}": value for name, value in getattr(starter, part).state_dict().items()}
    return bits(named)


def modes_and_hooks(starter: Starter) -> list[tuple]:
    """The mode, hooks and gradients of every module, which learning might leave changed."""
    return [
        (
            module.training,
            *(len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)),
            *((p.requires_grad, p.grad is None, p.dtype) for p in module.parameters(recurse=False)),
        )
        for part in (starter.unet, starter.vae, starter.text_encoder)
        for module in part.modules()
    ]


# What changes


def test_learning_changes_all_key_and_value_projections_only():
    starter = small_starter()
    base = base_of(starter)
    expected = {name for name, _ in starter.unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    exhibit = museum_of(base, "<one>").exhibits[0]
    assert {projection.path for projection in exhibit.deltas} == expected
    assert all(delta.norm() > 0 for delta in exhibit.deltas.values())
    assert all(delta.shape == projection.shape and delta.rank == 2 for projection, delta in exhibit.deltas.items())


def test_earlier_exhibits_keep_every_bit(base: Base, first: Museum):
    before = bits(tensors_of(first))
    recipe = short(SelfRegularization(100.0), learning_rate=0.1, weight_decay=0.1)
    museum = taught(base, first, small_concept("<two>", seed=1), recipe)
    museum = taught(base, museum, small_concept("<three>", seed=2), recipe)
    after = bits(tensors_of(museum))
    assert museum.words == ("<one>", "<two>", "<three>")
    assert {name: after[name] for name in before} == before
    assert museum.exhibits[0] is first.exhibits[0]


def test_the_input_museum_does_not_change(base: Base, first: Museum):
    taught(base, first, small_concept("<two>", seed=1), short(C_LORA))
    assert first.words == ("<one>",)


def test_only_the_vectors_of_the_new_word_change():
    starter = small_starter()
    base = base_of(starter)
    table = starter.text_encoder.get_input_embeddings().weight
    before, size = table.detach().clone(), table.shape
    museum = museum_of(base, "<one>")
    later = taught(base, museum, small_concept("<two>", seed=1), short(C_LORA))
    assert torch.equal(starter.text_encoder.get_input_embeddings().weight, before)
    assert starter.text_encoder.get_input_embeddings().weight.shape == size
    for encoder, vectors in museum.exhibits[0].token.vectors.items():
        assert torch.equal(later.exhibits[0].token.vectors[encoder], vectors)
    fresh = start(base, [small_concept("<two>", seed=1)], short(), Museum(base.fingerprint)).vectors["<two>"]
    for encoder, vectors in later.exhibits[1].token.vectors.items():
        assert not torch.equal(vectors, fresh[encoder].detach())


# The base stays as it is


def test_the_base_keeps_every_bit_after_learning():
    starter = small_starter()
    base = base_of(starter)
    weights, rest, output = everything_of(starter), modes_and_hooks(starter), predictions(base)
    for precision in ("fp32", "bf16", "fp16"):
        taught(base, Museum(base.fingerprint), small_concept(), short(C_LORA, precision=precision, checkpointing=True))
        assert everything_of(starter) == weights
        assert modes_and_hooks(starter) == rest
        assert torch.equal(predictions(base), output)


@pytest.mark.parametrize("exception", [Cancelled, KeyboardInterrupt, RuntimeError])
def test_the_base_keeps_every_bit_when_stopped_at_any_step(first: Museum, exception: type[BaseException]):
    starter = small_starter()
    base = base_of(starter)
    weights, rest, output = everything_of(starter), modes_and_hooks(starter), predictions(base)
    for last in (1, 2, 3):

        def report(progress: Progress, last: int = last) -> None:
            if progress.step == last:
                raise exception("enough")

        with pytest.raises(exception, match="enough"):
            taught(base, first, small_concept("<two>"), short(C_LORA), report=report)
        assert everything_of(starter) == weights
        assert modes_and_hooks(starter) == rest
        assert torch.equal(predictions(base), output)


def test_the_base_keeps_every_bit_when_a_term_of_the_loss_fails(first: Museum):
    starter = small_starter()
    base = base_of(starter)
    weights, rest, output = everything_of(starter), modes_and_hooks(starter), predictions(base)
    with pytest.raises(ZeroDivisionError):
        taught(base, first, small_concept("<two>"), short(Broken()))
    assert everything_of(starter) == weights
    assert modes_and_hooks(starter) == rest
    assert torch.equal(predictions(base), output)


# The first steps


def test_the_first_step_sees_the_unchanged_model(base: Base):
    reports: list[Progress] = []
    concept, recipe = small_concept(), short(C_LORA)
    taught(base, Museum(base.fingerprint), concept, recipe, report=reports.append)
    trained = start(base, [concept], recipe, Museum(base.fingerprint))
    step = Lesson.prepared(base, concept, recipe).step(0, trained)
    with torch.no_grad():
        conditioning = base.encode_prompts(["a photo of <one>"] * 2, [trained.token("<one>")])
        noisy = base.schedule.noised(step.latents, step.noise, step.timesteps)
        expected = F.mse_loss(base.predict(noisy, step.timesteps, conditioning), step.target)
    assert reports[0].losses["diffusion"] == pytest.approx(expected.item(), rel=1e-6)


def test_down_gets_gradients_only_after_the_first_update(base: Base):
    concept, recipe = small_concept(), short()
    lesson, trained = Lesson.prepared(base, concept, recipe), start(base, [concept], recipe, Museum(base.fingerprint))
    optimizer = Optimizer(trained, recipe, base.device, torch.float32)
    with base.learning(precision="fp32", checkpointing=False), attached(base, trained.deltas):
        for number in range(2):
            optimizer.gather(diffusion_loss(lesson.step(number, trained), base.schedule))
            for delta in trained.deltas.values():
                assert delta.up.grad.abs().max() > 0
                assert (delta.down.grad.abs().max() > 0) == (number > 0), "up is zero before the first update"
            assert all(vectors.grad.abs().max() > 0 for vectors in trained.token(concept.word).vectors.values())
            optimizer.update(number)


def test_learning_lowers_the_loss_on_its_pictures(base: Base):
    losses: list[float] = []
    concept = small_concept(count=1)
    recipe = short(rank=4, steps=30, learning_rate=3e-3, batch_size=8)
    museum = taught(base, Museum(base.fingerprint), concept, recipe, report=lambda p: losses.append(p.loss))
    lesson = Lesson.prepared(base, concept, recipe)
    before = lesson.reference_loss(start(base, [concept], recipe, Museum(base.fingerprint)).token("<one>"))
    with attached(base, museum.deltas()):
        after = lesson.reference_loss(museum.exhibits[0].token)
    assert after < before
    assert museum.exhibits[0].facts["loss"] == losses[-1]


# C-LoRA and its weight


def equal_but_for_the_recipe(one: Museum, other: Museum) -> bool:
    theirs = tensors_of(other)
    return all(torch.equal(value, theirs[name]) for name, value in tensors_of(one).items())


def test_the_first_concept_of_c_lora_equals_sequential_learning(base: Base, first: Museum):
    assert same_bits(first, museum_of(base, "<one>", recipe=short()))


def test_a_weight_of_zero_equals_sequential_learning(base: Base, first: Museum):
    concept = small_concept("<two>", seed=1)
    plain = taught(base, first, concept, short())
    assert equal_but_for_the_recipe(taught(base, first, concept, short(SelfRegularization(0.0))), plain)
    assert not equal_but_for_the_recipe(taught(base, first, concept, short(SelfRegularization(10.0))), plain)


def test_a_larger_weight_gives_less_overlap_with_the_past(base: Base):
    museum = Museum(base.fingerprint)
    token = museum_of(base, "<one>").exhibits[0].token
    museum = museum.with_exhibits(Exhibit(token, random_deltas(base, size=0.05), short()))
    past = museum.dense()

    def touched(weight: float) -> float:
        recipe = short(SelfRegularization(weight), steps=12, clip_norm=1e6)
        deltas = taught(base, museum, small_concept("<two>", seed=1), recipe).exhibits[1].deltas
        return sum((past[place] * delta.dense()).square().sum().item() for place, delta in deltas.items())

    overlaps = [touched(weight) for weight in (0.0, 10.0, 1000.0)]
    assert overlaps[0] > 1.1 * overlaps[1] and overlaps[1] > 1.1 * overlaps[2] > 0


def test_the_reported_penalty_matches_its_equation(base: Base, first: Museum):
    reports: list[tuple[float, float]] = []
    past = first.dense()

    def report(progress: Progress) -> None:
        deltas = progress.trained.deltas
        total = sum((past[place] * delta.dense()).square().sum().item() for place, delta in deltas.items())
        reports.append((progress.losses["self_regularization"], total))

    taught(base, first, small_concept("<two>", seed=1), short(SelfRegularization(7.0, relative=False)), report=report)
    assert reports[0][0] == 0.0, "the first step starts from zero deltas"
    for (_, after_update), (reported, _) in itertools.pairwise(reports):
        assert reported == pytest.approx(7.0 * after_update, rel=1e-4)


def test_earlier_deltas_are_part_of_the_model_during_learning(base: Base):
    token = museum_of(base, "<one>").exhibits[0].token
    museum = Museum(base.fingerprint, (Exhibit(token, random_deltas(base, size=1), short()),))
    reports: list[float] = []
    concept, recipe = small_concept("<two>", seed=1), short(steps=1)
    taught(base, museum, concept, recipe, report=lambda progress: reports.append(progress.loss))
    folded = small_base()
    with torch.no_grad():
        for projection, matrix in museum.dense().items():
            folded.slots[projection].weight.add_(matrix)
    empty = Museum(folded.fingerprint)
    taught(folded, empty, concept, recipe, report=lambda progress: reports.append(progress.loss))
    taught(base, Museum(base.fingerprint), concept, recipe, report=lambda progress: reports.append(progress.loss))
    assert reports[0] == pytest.approx(reports[1], rel=1e-4)
    assert reports[0] != pytest.approx(reports[2], rel=1e-4)


# The same inputs give the same museum


def test_global_seeds_do_not_change_the_result(base: Base, first: Museum):
    museums = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        museums.append(taught(base, first, small_concept("<two>", seed=1), short(C_LORA, flip=True)))
    assert same_bits(*museums)
    assert same_bits(museums[0], taught(small_base(), first, small_concept("<two>", seed=1), short(C_LORA, flip=True)))


def test_the_starter_learns_and_is_sampled_on_one_thread(base: Base):
    """Several threads would spin while they wait for each other, which is much slower on a busy machine."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        learn(
            base,
            Museum(base.fingerprint),
            [small_concept()],
            short(),
            report=lambda progress: seen.append(torch.get_num_threads()),
        )
        sampled = sample(
            base,
            ["a cat"],
            sampling=Sampling(steps=1),
            latent_shape=(32, 8, 8),
            report=lambda done, total: seen.append(torch.get_num_threads()),
        )
        assert set(seen) == {1} and len(sampled) == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_learning_does_not_change_the_global_rngs(base: Base, first: Museum):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    taught(base, first, small_concept("<two>"), short(C_LORA, flip=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize(
    "other", [{"recipe": short(seed=1)}, {"concept": small_concept(seed=1)}, {"concept": small_concept(token_seed=1)}]
)
def test_another_seed_or_other_pictures_give_another_museum(base: Base, other: dict):
    plain = taught(base, Museum(base.fingerprint), small_concept(), short())
    inputs = {"concept": small_concept(), "recipe": short()} | other
    assert not same_bits(plain, taught(base, Museum(base.fingerprint), **inputs))


def test_learning_in_inference_mode_gives_the_same_ordinary_tensors(base: Base, second: Museum):
    with torch.inference_mode():
        concepts = [small_concept(word, seed=seed) for seed, word in enumerate(("<one>", "<two>"))]
        museum = Museum(base.fingerprint)
        for concept in concepts:
            museum = taught(base, museum, concept, short(C_LORA))
    assert same_bits(museum, second)
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors_of(museum).values())


def test_learning_in_no_grad_gives_the_same(base: Base, first: Museum):
    with torch.no_grad():
        assert same_bits(first, museum_of(base, "<one>"))
        assert not torch.is_grad_enabled()


# What is refused


def test_a_museum_over_another_base_is_refused(first: Museum):
    other = small_base(seed=1)
    with pytest.raises(BaseModelError, match=f"{first.base}.*{other.fingerprint}.*its own base"):
        taught(other, first, small_concept("<two>"), short())


def test_a_word_that_is_already_in_the_museum_is_refused(base: Base, second: Museum):
    with pytest.raises(ConceptError, match=r"'<two>' already names exhibit 2.*another word"):
        taught(base, second, small_concept("<two>"), short())


def test_the_base_is_checked_before_any_work(first: Museum):
    class Untouched:
        fingerprint = small_base(seed=1).fingerprint

    with pytest.raises(BaseModelError):
        taught(Untouched(), first, small_concept("<two>"), short())
