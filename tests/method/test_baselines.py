"""The baselines, each against its definition."""

import pytest
import torch

from clora_core.errors import ConceptError, LearningError, RecipeError
from clora_core.learning.directions import free_directions, quiet_directions
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import Trained, start
from clora_core.method.objective import diffusion_loss
from clora_core.method.recipe import Recipe
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.low_rank import LowRank, concatenated
from clora_core.museum.museum import Museum
from tests.small import bits, museum_of, predictions, short, small_concept, taught, tensors_of

SHARED = {"over": "shared"}


def ended(base: Base, museum: Museum, word: str, recipe: Recipe, **more) -> tuple[Museum, Trained]:
    """The museum after one more learning, and the final trained parameters."""
    seen: list[Trained] = []
    museum = taught(
        base, museum, small_concept(word, **more), recipe, report=lambda progress: seen.append(progress.trained)
    )
    return museum, seen[-1]


def test_a_shared_delta_continues_and_equals_the_sum_of_the_exhibits(base: Base):
    museum, before = Museum(base.fingerprint), None
    for number, word in enumerate(("<one>", "<two>", "<three>")):
        recipe = short(**SHARED)
        if before is not None:
            begun = start(base, [small_concept(word)], recipe, museum)
            for projection, delta in begun.deltas.items():
                assert torch.equal(delta.up, before.deltas[projection].up)
                assert torch.equal(delta.down, before.deltas[projection].down)
        museum, before = ended(base, museum, word, recipe, seed=number)
        for projection, moved in museum.dense().items():
            torch.testing.assert_close(moved, before.deltas[projection].dense().detach(), rtol=1e-5, atol=1e-7)
    assert [exhibit.rank for exhibit in museum.exhibits] == [2, 4, 4]


def test_a_continued_shared_delta_starts_from_the_viewed_model(base: Base):
    museum = museum_of(base, "<plain>")
    museum, _ = ended(base, museum, "<one>", short(**SHARED))
    losses: list[float] = []
    recipe, concept = short(**SHARED, steps=1), small_concept("<two>", seed=4)
    taught(base, museum, concept, recipe, report=lambda progress: losses.append(progress.loss))
    with attached(base, museum.dense()), torch.no_grad():
        word = start(base, [concept], recipe, museum)
        step = Lesson.prepared(base, concept, recipe).step(0, word)
        expected = diffusion_loss(step, base.schedule).item()
    assert losses == pytest.approx([expected], rel=1e-5)


def test_a_shared_delta_keeps_its_rank(base: Base):
    museum, _ = ended(base, Museum(base.fingerprint), "<one>", short(**SHARED))
    with pytest.raises(RecipeError, match="has rank 2; it cannot continue with rank 3"):
        taught(base, museum, small_concept("<two>"), short(**SHARED, rank=3))


def test_learning_over_the_base_does_not_depend_on_the_museum(base: Base):
    recipe = short(over="base")
    alone, _ = ended(base, Museum(base.fingerprint), "<new>", recipe)
    later, _ = ended(base, museum_of(base, "<old>"), "<new>", recipe)
    assert bits(tensors_of(alone)) == bits(tensors_of(later.only(["<new>"])))
    assert later.words == ("<old>", "<new>")


def test_orthogonal_deltas_use_different_directions(base: Base):
    recipe = short(over="base", down="orthogonal", rank=3)
    museum = museum_of(base, "<one>", "<two>", "<three>", recipe=recipe)
    for projection in base.slots:
        moved = [exhibit.deltas[projection].dense() for exhibit in museum.exhibits]
        for one in range(3):
            rows = museum.exhibits[one].deltas[projection].down
            torch.testing.assert_close(rows @ rows.T, torch.eye(3), rtol=0, atol=1e-5)
            for other in range(one):
                assert (moved[one] @ moved[other].T).norm() < 1e-5 * moved[one].norm() * moved[other].norm()
    kept, _ = ended(base, museum.only(["<one>", "<three>"]), "<four>", recipe)
    for projection in base.slots:  # the rows of the removed exhibit are free again
        assert torch.equal(kept.exhibits[-1].deltas[projection].down, museum.exhibits[1].deltas[projection].down)


def test_free_directions_are_orthogonal_until_none_are_left():
    taken: list[torch.Tensor] = []
    for _ in range(4):
        taken.append(free_directions(taken, 2, 8))
    together = torch.cat(taken)
    torch.testing.assert_close(together @ together.T, torch.eye(8), rtol=0, atol=1e-5)
    assert free_directions(taken, 2, 8).shape == (2, 8), "with none left, directions are shared"
    with pytest.raises(RecipeError, match="only 8"):
        free_directions([], 9, 8)


def test_a_quiet_delta_moves_old_prompts_within_its_bound(base: Base):
    museum = museum_of(base, "<old>")
    after, _ = ended(base, museum, "<new>", short(down="quiet", steps=6), seed=2)
    prompts = [*base.family.captions, "a photo of <old>"]
    states = [base.encode_prompts([prompt], museum.tokens).states[0] for prompt in prompts]  # one at a time
    everyday, old = torch.cat(states[:-1]), states[-1]
    moment = (everyday.T @ everyday / len(everyday) + old.T @ old / len(old)) / 2
    quiet = torch.linalg.eigvalsh(moment.double())[:64].sum().item()
    for delta in after.exhibit("<new>").deltas.values():
        dense = delta.dense()
        moved = ((everyday @ dense.T).square().sum(1).mean() + (old @ dense.T).square().sum(1).mean()) / 2
        bound = torch.linalg.matrix_norm(dense.double(), ord=2).item() ** 2 * quiet
        assert 0 < moved.item() <= bound * (1 + 1e-3)
    projector = quiet_directions(base, museum)
    torch.testing.assert_close(projector @ projector, projector, rtol=0, atol=1e-5)
    assert projector.trace().item() == pytest.approx(64, abs=1e-3)


def test_a_full_matrix_is_trained_like_a_dense_parameter(base: Base):
    recipe, concept = short(down="identity", rank=1, steps=4, weight_decay=0.01), small_concept()
    museum, _ = ended(base, Museum(base.fingerprint), "<one>", recipe)
    dense = {p: torch.zeros(p.shape, requires_grad=True) for p in base.slots}
    word = start(base, [concept], recipe, Museum(base.fingerprint))
    vectors = word.token(concept.word).vectors
    groups = [
        {"params": list(dense.values()), "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": list(vectors.values()), "lr": recipe.token_learning_rate, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups)
    lesson = Lesson.prepared(base, concept, recipe)
    with base.learning(precision="fp32", checkpointing=False), attached(base, dense):
        for number in range(recipe.steps):
            diffusion_loss(lesson.step(number, word), base.schedule).backward()
            torch.nn.utils.clip_grad_norm_([*dense.values(), *vectors.values()], recipe.clip_norm)
            adamw.step()
            adamw.zero_grad()
    for projection, moved in museum.dense().items():
        torch.testing.assert_close(moved, dense[projection].detach(), rtol=1e-3, atol=1e-5)
    assert {exhibit.rank for exhibit in museum.exhibits} == {128}


@pytest.mark.parametrize("numbers", [SHARED, {"down": "quiet"}, {"over": "base", "down": "orthogonal"}])
def test_the_input_museum_and_the_model_do_not_change(numbers: dict, base: Base):
    museum = museum_of(base, "<old>", recipe=short(**numbers))
    before, answers = bits(tensors_of(museum)), predictions(base)
    again = [taught(base, museum, small_concept("<new>"), short(**numbers)) for _ in range(2)]
    assert bits(tensors_of(museum)) == before
    assert bits(tensors_of(again[0])) == bits(tensors_of(again[1]))
    assert torch.equal(predictions(base), answers)
    sums = again[0].dense()
    for projection in base.slots:
        parts = [LowRank(e.deltas[projection].up, e.deltas[projection].down) for e in again[0].exhibits]
        torch.testing.assert_close(sums[projection], concatenated(parts).dense())


def test_joint_learning_takes_turns_and_shares_the_deltas(base: Base):
    one, two = small_concept("<one>"), small_concept("<two>", seed=1, count=3)
    recipe = short(steps=4)
    museum = taught(base, Museum(base.fingerprint), two, recipe, companions=[one])
    assert museum.words == ("<one>", "<two>")
    assert [exhibit.rank for exhibit in museum.exhibits] == [0, 2]
    # The same by hand: one pair of factors, two words, a batch of each in turn.
    trained = start(base, [one, two], recipe, Museum(base.fingerprint))
    factors = [factor for delta in trained.deltas.values() for factor in (delta.up, delta.down)]
    words = [value for vectors in trained.vectors.values() for value in vectors.values()]
    groups = [{"params": factors, "lr": recipe.learning_rate}, {"params": words, "lr": recipe.token_learning_rate}]
    adamw = torch.optim.AdamW(groups, weight_decay=0.0)
    lessons = [Lesson.prepared(base, each, recipe) for each in (one, two)]
    with base.learning(precision="fp32", checkpointing=False), attached(base, trained.deltas):
        for number in range(4):
            diffusion_loss(lessons[number % 2].step(number // 2, trained), base.schedule).backward()
            torch.nn.utils.clip_grad_norm_([*factors, *words], recipe.clip_norm)
            adamw.step()
            adamw.zero_grad()
    for projection, delta in museum.exhibits[-1].deltas.items():
        torch.testing.assert_close(delta.up, trained.deltas[projection].up.detach(), rtol=1e-4, atol=1e-6)
    for exhibit in museum.exhibits:
        expected = trained.token(exhibit.word).vectors["clip_l"].detach()
        torch.testing.assert_close(exhibit.token.vectors["clip_l"], expected, rtol=1e-4, atol=1e-6)


def test_joint_learning_refuses_gates_and_taken_words(base: Base):
    with pytest.raises(LearningError, match="cannot act at the word of one"):
        taught(
            base,
            Museum(base.fingerprint),
            small_concept("<two>"),
            short(applied="word"),
            companions=[small_concept("<one>")],
        )
    with pytest.raises(ConceptError, match="already names"):
        museum = museum_of(base, "<one>")
        taught(base, museum, small_concept("<two>"), short(), companions=[small_concept("<one>")])
