"""A lesson gives every picture equally often, with its own caption, optionally mirrored."""

from dataclasses import replace

import pytest
import torch

from clora_core.errors import ConceptError
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import start, start_vectors
from clora_core.method.objective import diffusion_loss
from clora_core.method.recipe import Recipe
from clora_core.method.regularizers import ContextPreservation, Regularizer, SelfRegularization, StyleDistillation
from clora_core.method.step import Step
from clora_core.model.attach import attached
from clora_core.model.base import Base, Conditioning
from clora_core.model.concept import Concept
from clora_core.museum.museum import Museum
from clora_core.pictures import Picture, in_memory
from tests.small import museum_of, pixels_of, same_bits, short, small_concept, taught


def steps(base: Base, concept: Concept, recipe: Recipe, count: int) -> tuple[Lesson, list[Step]]:
    lesson, trained = Lesson.prepared(base, concept, recipe), start(base, [concept], recipe, Museum(base.fingerprint))
    with torch.no_grad():
        return lesson, [lesson.step(number, trained) for number in range(count)]


def place_of(latents: torch.Tensor, among: torch.Tensor) -> int:
    """The place of these latents among those of the pictures."""
    found = [index for index, other in enumerate(among) if torch.equal(latents, other)]
    assert len(found) == 1
    return found[0]


def test_every_epoch_has_every_picture_once(base: Base):
    lesson, batches = steps(base, small_concept(count=3), short(batch_size=2), 6)
    places = [place_of(latents, lesson.buckets[0].latents[0]) for step in batches for latents in step.latents]
    epochs = [places[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in epochs)
    assert len({tuple(one) for one in epochs}) > 1, "in changing order"


def test_a_batch_can_be_larger_than_the_number_of_pictures(base: Base):
    lesson, (step,) = steps(base, small_concept(count=2), short(batch_size=6), 1)
    places = [place_of(latents, lesson.buckets[0].latents[0]) for latents in step.latents]
    assert sorted(places) == [0, 0, 0, 1, 1, 1]


def of_sizes(*sizes: tuple[int, int]) -> Concept:
    """A random picture of each size, each with its number as the caption."""
    rng = torch.Generator().manual_seed(0)
    pictures = [in_memory(torch.rand(1, 3, *size, generator=rng) * 2 - 1)[0] for size in sizes]
    return Concept("<one>", pictures, captions=tuple(f"{{word}} {number}" for number in range(len(sizes))))


def test_batches_have_one_size_and_pictures_occur_equally_often(base: Base):
    concept = of_sizes((64, 64), (48, 80), (64, 64), (80, 48), (64, 64))
    lesson, batches = steps(base, concept, short(batch_size=2), 20)  # four times as many batches as pictures
    assert [bucket.places.tolist() for bucket in lesson.buckets] == [[0, 2, 4], [1], [3]]
    latents = [base.encode_pictures(picture.read()[None])[0] for picture in concept.pictures]
    counts = [0] * 5
    for step in batches:
        for one in step.latents:
            same = [own.shape == one.shape and torch.allclose(own, one, atol=1e-3) for own in latents]
            assert sum(same) == 1
            counts[same.index(True)] += 1
    assert counts == [8] * 5


def test_latents_and_noise_depend_only_on_the_number_of_the_batch(base: Base):
    concept = of_sizes((64, 64), (48, 80), (64, 64))
    recipe = short(batch_size=2)
    lesson, batches = steps(base, concept, recipe, 9)
    trained = start(base, [concept], recipe, Museum(base.fingerprint))
    with torch.no_grad():
        again = lesson.step(7, trained)
    assert torch.equal(again.latents, batches[7].latents) and torch.equal(again.noise, batches[7].noise)
    assert len({tuple(step.latents.shape) for step in batches}) == 2


@pytest.mark.parametrize("regularizer", [StyleDistillation(), SelfRegularization(), ContextPreservation()], ids=str)
def test_pictures_of_several_sizes_are_learned(base: Base, regularizer: Regularizer):
    before = taught(base, Museum(base.fingerprint), small_concept("<old>"), short())
    losses: list[float] = []
    concept = of_sizes((64, 64), (48, 80), (64, 64))
    museum = taught(base, before, concept, short(regularizer, steps=6), report=lambda p: losses.append(p.loss))
    assert len(losses) == 6 and museum.words == ("<old>", "<one>")


def test_a_repeated_picture_is_encoded_once_and_drawn_per_repeat(base: Base):
    first, second = of_sizes((64, 64), (64, 64)).pictures
    reads: list[int] = []

    def counted() -> torch.Tensor:
        reads.append(1)
        return first.read()

    concept = Concept("<one>", [replace(first, read=counted), second])
    repeated = Concept("<one>", [*[concept.pictures[0]] * 3, second])
    lesson, batches = steps(base, repeated, short(batch_size=4), 3)
    assert len(reads) == 1 and lesson.buckets[0].latents.shape[1] == 4
    assert torch.equal(lesson.buckets[0].latents[:, [0, 3]], Lesson.prepared(base, concept, short()).buckets[0].latents)
    for step in batches:
        assert sum(torch.equal(one, lesson.buckets[0].latents[0, 0]) for one in step.latents) == 3


def test_pictures_of_any_size_keep_their_captions(base: Base):
    concept = of_sizes((64, 64), (48, 80))
    _, batches = steps(base, concept, short(batch_size=1), 4)
    token = start(base, [concept], short(), Museum(base.fingerprint)).token("<one>")
    with torch.no_grad():
        states = [base.encode_prompts([prompt], [token]).states for prompt in concept.prompts()]
    for step in batches:
        torch.testing.assert_close(step.conditioning.states, states[step.latents.shape[-1] != 16], rtol=1e-4, atol=1e-5)


def test_a_mask_stays_with_its_picture_and_is_mirrored_with_it(base: Base):
    rng = torch.Generator().manual_seed(0)
    half = torch.cat([torch.ones(64, 32), torch.zeros(64, 32)], dim=1)
    pixels = torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1
    masked = Picture.of(lambda: pixels[0], (64, 64), read_mask=lambda: half)
    concept = Concept("<one>", [masked, *in_memory(pixels[1:])])
    lesson, batches = steps(base, concept, short(flip=True, batch_size=4), 4)
    sides = lesson.buckets[0].latents.shape[-1]
    expected = torch.cat([torch.ones(sides, sides // 2), torch.zeros(sides, sides // 2)], dim=1)
    both = lesson.buckets[0].latents.flatten(0, 1)
    for step in batches:
        for latents, mask in zip(step.latents, step.mask, strict=True):
            view, number = divmod(place_of(latents, both), 2)
            own = (expected, expected.flip(-1))[view] if number == 0 else torch.ones(sides, sides)
            assert torch.equal(mask[0], own)


def test_the_loss_counts_only_the_inside_of_the_mask(base: Base):
    """Pixels outside have no effect, except through the autoencoder."""
    rng = torch.Generator().manual_seed(0)
    pixels, mask = torch.rand(3, 64, 64, generator=rng) * 2 - 1, torch.zeros(64, 64)
    mask[:32] = 1
    step = steps(base, Concept("<one>", [Picture.of(lambda: pixels, (64, 64), read_mask=lambda: mask)]), short(), 1)[1][
        0
    ]
    outside = replace(step, prediction=step.prediction + 7 * (1 - step.mask))
    inside = replace(step, prediction=step.prediction + 7 * step.mask)
    assert diffusion_loss(outside, base.schedule) == diffusion_loss(step, base.schedule)
    assert diffusion_loss(inside, base.schedule) > diffusion_loss(step, base.schedule)
    naive = ((step.prediction - step.target).square()[:, :, : step.mask.shape[-2] // 2]).mean()
    torch.testing.assert_close(diffusion_loss(step, base.schedule), naive)


def test_an_empty_mask_is_ignored(base: Base):
    pixels = small_concept(count=1).pictures[0]
    empty = Picture.of(pixels.read, (64, 64), read_mask=lambda: torch.zeros(64, 64))
    assert empty.read_mask is None and empty.digest == pixels.digest
    full = Picture.of(pixels.read, (64, 64), read_mask=lambda: torch.ones(64, 64))
    assert full.digest != pixels.digest
    one, other = (steps(base, Concept("<one>", [each]), short(), 1)[1][0] for each in (pixels, full))
    assert one.mask is None
    torch.testing.assert_close(diffusion_loss(one, base.schedule), diffusion_loss(other, base.schedule))


def test_latents_are_the_encoded_pictures(base: Base):
    concept = small_concept()
    lesson = Lesson.prepared(base, concept, short())
    assert torch.equal(lesson.buckets[0].latents, base.encode_pictures(pixels_of(concept))[None])


def test_flip_mirrors_about_half_of_the_pictures(base: Base):
    concept = small_concept(count=2)
    lesson, batches = steps(base, concept, short(flip=True, batch_size=4), 4)
    mirrored = base.encode_pictures(pixels_of(concept).flip(3))
    assert torch.equal(lesson.buckets[0].latents, torch.stack([base.encode_pictures(pixels_of(concept)), mirrored]))
    both = lesson.buckets[0].latents.flatten(0, 1)
    views = [place_of(latents, both) // 2 for step in batches for latents in step.latents]
    assert 3 <= sum(views) <= 13, "about half of sixteen"
    _, unflipped = steps(base, concept, short(batch_size=4), 4)
    straight = base.encode_pictures(pixels_of(concept))
    assert all(place_of(latents, straight) >= 0 for step in unflipped for latents in step.latents)


def test_noise_and_timesteps_differ_within_and_between_batches(base: Base):
    _, batches = steps(base, small_concept(), short(batch_size=4), 8)
    noises = torch.cat([step.noise for step in batches])
    assert len(torch.unique(noises.flatten(1), dim=0)) == 32
    assert abs(noises.mean()) < 0.02 and abs(noises.std() - 1) < 0.02
    times = torch.cat([step.timesteps for step in batches])
    assert len(times.unique()) > 24 and times.min() < 250 and times.max() >= 750 and times.max() < 1000


def test_every_picture_has_its_own_caption(base: Base):
    captions = ("a photo of {word}", "a photo of {word} with red hair", "{word} at the sea", "a cat beside {word}")
    concept = small_concept(captions=captions)
    recipe = short()
    lesson, batches = steps(base, concept, recipe, 4)
    token = start(base, [concept], recipe, Museum(base.fingerprint)).token("<one>")
    with torch.no_grad():
        alone = torch.cat([base.encode_prompts([text], [token]).states for text in concept.prompts()])
    assert len(torch.unique(alone.flatten(1), dim=0)) == 4
    for step in batches:
        for latents, states in zip(step.latents, step.conditioning.states, strict=True):
            expected = alone[place_of(latents, lesson.buckets[0].latents[0])]
            torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def test_the_reference_loss_does_not_depend_on_the_batch_size(base: Base):
    values = []
    for batch_size in (1, 3, 8):
        recipe = short(batch_size=batch_size)
        lesson = Lesson.prepared(base, small_concept(), recipe)
        trained = start(base, [small_concept()], recipe, Museum(base.fingerprint))
        values.append(lesson.reference_loss(trained.token("<one>")))
        with attached(base, trained.deltas):
            assert lesson.reference_loss(trained.token("<one>")) == values[-1]
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)
    assert values[0] > 0


@pytest.mark.parametrize("count", [1, 3, 16])
def test_all_vectors_of_a_word_are_learned(base: Base, count: int):
    concept = small_concept(vectors=count)
    before = start_vectors(base, concept)["clip_l"]
    after = taught(base, Museum(base.fingerprint), concept, short()).exhibits[0].token
    assert after.words == count
    assert after.vectors["clip_l"].shape == before.shape == (1, count, 128)
    assert ((after.vectors["clip_l"] - before).abs().amax(dim=2) > 0).all()


def test_random_vectors_have_the_spread_of_the_vocabulary(base: Base):
    vectors = start_vectors(base, small_concept(vectors=16))["clip_l"]
    table = base.vocabulary()["clip_l"].float()
    assert vectors.std().item() == pytest.approx(table.std().item(), rel=0.1)
    again = start_vectors(base, small_concept(vectors=16))["clip_l"]
    assert torch.equal(vectors, again)
    for other in (small_concept(vectors=16, token_seed=1), small_concept("<two>", vectors=16)):
        assert not torch.equal(vectors, start_vectors(base, other)["clip_l"])


def test_a_word_can_start_from_a_known_word(base: Base):
    known = base.word_vectors("cat")["clip_l"]
    vectors = start_vectors(base, small_concept(start="cat", vectors=3))["clip_l"]
    assert torch.equal(vectors, known.float().expand(3, -1)[None])
    with pytest.raises(ConceptError, match="wombat"):
        start_vectors(base, small_concept(start="wombat"))


def test_starting_from_a_word_does_not_change_that_word(base: Base):
    before = base.word_vectors("cat")["clip_l"].clone()
    taught(base, Museum(base.fingerprint), small_concept(start="cat"), short(token_learning_rate=0.5))
    assert torch.equal(base.word_vectors("cat")["clip_l"], before)


def test_factors_start_as_in_peft(base: Base):
    trained = start(base, [small_concept()], short(rank=16), Museum(base.fingerprint))
    for projection, delta in trained.deltas.items():
        bound = projection.shape[1] ** -0.5
        assert not delta.up.any()
        assert delta.down.abs().max() <= bound and delta.down.abs().max() > 0.95 * bound
        assert abs(delta.down.mean().item()) < 0.1 * bound
    assert len({delta.down[0, 0].item() for delta in trained.deltas.values()}) == len(trained.deltas)


def test_exhibits_record_how_they_were_learned(base: Base):
    exhibit = museum_of(base, "<one>").exhibits[0]
    assert exhibit.prompt == "a photo of <one>" and exhibit.kind == "object" and exhibit.rank == 2
    assert exhibit.facts["pictures"] == 4 and exhibit.recipe.method == "short"


def test_gradients_of_a_repeated_prompt_are_summed_deterministically():
    states = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(16, 77, 768, generator=torch.Generator().manual_seed(1))
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        for _ in range(8):
            (gradient,) = torch.autograd.grad(
                Conditioning(states)[torch.zeros(16, dtype=torch.long)].states, states, upstream
            )
            found.append(gradient)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], upstream.sum(0, keepdim=True), rtol=1e-4, atol=1e-4)


def test_captions_can_mention_earlier_words(base: Base):
    """The learned vectors of these words are used and do not change."""
    museum = museum_of(base, "<dog>")
    concept = small_concept(captions=("{word}", "{word} and <dog>", "{word} beside a <dog>", "{word}"))
    lesson = Lesson.prepared(base, concept, short(), museum.tokens)
    token = start(base, [concept], short(), museum).token("<one>")
    with torch.no_grad():
        found = lesson.conditioning(torch.arange(4), token)
        expected = base.encode_prompts(concept.prompts(), [*museum.tokens, token])
        without = base.encode_prompts(concept.prompts(), [token])
    assert torch.equal(found.states, expected.states) and not torch.equal(found.states[1], without.states[1])
    assert found.places["<dog>"].any(1).tolist() == [False, True, True, False]
    after = taught(base, museum, concept, short())
    assert same_bits(Museum(base.fingerprint, after.exhibits[:1]), museum)


def test_captions_can_mention_jointly_learned_words(base: Base):
    """A picture of both trains both words, even if nothing else trains one of them."""
    both = small_concept("<two>", captions=("<one> and {word}",) * 4)
    alone = small_concept("<one>", seed=1)
    recipe = short(steps=2, batch_size=1)
    trained = start(base, [alone, both], recipe, Museum(base.fingerprint))
    step = Lesson.prepared(base, both, recipe, (), ["<one>", "<two>"]).step(0, trained)
    step.prediction.sum().backward()
    assert trained.vectors["<one>"]["clip_l"].grad.abs().max() > 0
    museum = taught(base, Museum(base.fingerprint), both, recipe, companions=[alone])
    assert museum.words == ("<one>", "<two>")
