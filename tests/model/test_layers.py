"""Layer-wise words: every cross-attention reads the prompt with its own vectors."""

import pytest
import torch
from torch import Tensor

from clora_core.errors import ConceptError
from clora_core.learning.start import start_vectors
from clora_core.method.regularizers import ContextPreservation, SelfRegularization
from clora_core.model.base import Base, Conditioning
from clora_core.model.concept import ConceptToken
from clora_core.model.families import find_projections
from clora_core.model.layers import layer_numbers
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Museum, viewing
from clora_core.over_diffusers import prompts
from tests.families import SMALL, build_unet
from tests.small import LATENT_SHAPE, bits, predictions, short, small_concept, taught, tensors_of

LAYERS, WIDTH = 6, 128
PROMPTS = ["a photo of <deep> and a cat", "a cat", "<deep>, <flat>"]


@pytest.fixture(scope="module")
def words() -> tuple[ConceptToken, ConceptToken]:
    rng = torch.Generator().manual_seed(0)
    deep = ConceptToken("<deep>", {"clip_l": torch.randn(LAYERS, 2, WIDTH, generator=rng)})
    return deep, ConceptToken("<flat>", {"clip_l": torch.randn(1, 1, WIDTH, generator=rng)})


def at_layer(token: ConceptToken, layer: int) -> ConceptToken:
    vectors = {name: value[min(layer, len(value) - 1)][None] for name, value in token.vectors.items()}
    return ConceptToken(token.word, vectors)


@pytest.mark.parametrize("family", ["starter", "sd15", "sdxl"])
def test_layers_are_numbered_in_the_order_of_execution(family: str, base: Base):
    unet = base.unet if family == "starter" else build_unet(family, SMALL[family])
    slots, ran = find_projections(unet), []
    numbers = layer_numbers(slots)
    handles = [
        slot.module.register_forward_hook(lambda *_, number=numbers[projection]: ran.append(number))
        for projection, slot in slots.items()
    ]
    states = torch.randn(1, 4, next(iter(slots)).shape[1])
    added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        unet(torch.randn(1, unet.config["in_channels"], 8, 8), torch.tensor([1]), states, added_cond_kwargs=added)
    for handle in handles:
        handle.remove()
    assert ran == sorted(ran) and set(ran) == set(range(len(slots) // 2))


def test_each_layer_has_the_states_of_its_own_vectors(base: Base, words: tuple[ConceptToken, ...]):
    together = base.encode_prompts(PROMPTS, words)
    assert together.states.shape == (3, 32, LAYERS * WIDTH)
    for layer in range(LAYERS):
        alone = base.encode_prompts(PROMPTS, [at_layer(word, layer) for word in words])
        part = together.states[..., layer * WIDTH : (layer + 1) * WIDTH]
        torch.testing.assert_close(part, alone.states, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(together.places[word], alone.places[word]) for word in alone.places)


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_encoding_rows_in_batches_gives_the_same(at_once: int, base: Base, monkeypatch: pytest.MonkeyPatch):
    """States, places and gradients, also if the layers of a prompt are split between batches."""
    rng = torch.Generator().manual_seed(3)
    vectors = torch.randn(LAYERS, 2, WIDTH, generator=rng).requires_grad_()
    deep, flat = ConceptToken("<deep>", {"clip_l": vectors}), torch.randn(1, 1, WIDTH, generator=rng)

    def encoded() -> tuple[Conditioning, Tensor]:
        found = base.encode_prompts(PROMPTS, [deep, ConceptToken("<flat>", {"clip_l": flat})])
        (gradient,) = torch.autograd.grad(found.states.square().sum(), vectors)
        return found, gradient

    whole, slope = encoded()
    monkeypatch.setattr(prompts, "ROWS_AT_ONCE", at_once)
    parts, found = encoded()
    torch.testing.assert_close(parts.states, whole.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(parts.places[word], where) for word, where in whole.places.items())


def test_prompts_without_a_layer_wise_word_keep_their_width(base: Base, words: tuple[ConceptToken, ...]):
    assert base.encode_prompts(["a cat", "<flat>"], words).states.shape == (2, 32, WIDTH)


def test_each_cross_attention_reads_its_own_layer(base: Base, words: tuple[ConceptToken, ...]):
    """Against a model whose projections are called with the states of their layer, one by one."""
    conditioning = base.encode_prompts(PROMPTS, words)
    latents = torch.randn(3, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([10, 400, 900])
    numbers = layer_numbers(base.slots)
    handles = []
    for projection, slot in base.slots.items():
        alone = base.encode_prompts(PROMPTS, [at_layer(word, numbers[projection]) for word in words]).states

        def instead(module, inputs, output: Tensor, states=alone) -> Tensor:
            return torch.nn.functional.linear(states, module.weight, module.bias)

        handles.append(slot.module.register_forward_hook(instead))
    with torch.no_grad():
        expected = base.predict(latents, times, base.encode_prompts(PROMPTS, [at_layer(word, 0) for word in words]))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(base.predict(latents, times, conditioning), expected, rtol=1e-4, atol=1e-5)
        same = ConceptToken("<deep>", {"clip_l": words[0].vectors["clip_l"][:1].expand(LAYERS, -1, -1)})
        wide, narrow = (
            base.predict(latents, times, base.encode_prompts(PROMPTS, [word, words[1]]))
            for word in (same, at_layer(same, 0))
        )
        torch.testing.assert_close(wide, narrow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_learns_vectors_of_its_own(checkpointing: bool, base: Base):
    before = predictions(base)
    recipe = short(SelfRegularization(), ContextPreservation(), layer_wise=True, checkpointing=checkpointing)
    museum = taught(base, Museum(base.fingerprint), small_concept("<one>", vectors=2), recipe)
    museum = taught(base, museum, small_concept("<two>", seed=1), recipe)
    for exhibit, count in zip(museum.exhibits, (2, 1), strict=True):
        vectors = exhibit.token.vectors["clip_l"]
        assert vectors.shape == (LAYERS, count, WIDTH)
        begun = start_vectors(base, small_concept(exhibit.word, vectors=count), layer_wise=True)["clip_l"]
        assert torch.equal(begun, begun[:1].expand_as(begun))
        assert ((vectors - begun).abs().amax(-1) > 0).all()
        assert len(torch.unique(vectors[:, 0], dim=0)) == LAYERS
    assert torch.equal(predictions(base), before)


def test_checkpointing_gives_the_same_result(base: Base):
    found = [
        taught(
            base,
            Museum(base.fingerprint),
            small_concept(),
            short(layer_wise=True, checkpointing=checkpointing, steps=2),
        )
        for checkpointing in (False, True)
    ]
    for name, value in tensors_of(found[0]).items():
        torch.testing.assert_close(tensors_of(found[1])[name], value, rtol=1e-3, atol=1e-5)
    again = taught(base, Museum(base.fingerprint), small_concept(), short(layer_wise=True, steps=2))
    assert bits(tensors_of(again)) == bits(tensors_of(found[0]))


def test_pictures_with_and_without_the_word_are_sampled_in_one_batch(base: Base, words: tuple[ConceptToken, ...]):
    museum = Museum(base.fingerprint)
    with viewing(base, museum.dense()):
        sampling = Sampling(steps=2, guidance=2.0)
        both = sample(base, ["a photo of <deep>", "a cat"], words, sampling, latent_shape=LATENT_SHAPE)
        plain = sample(base, ["a dog", "a cat"], [], sampling, latent_shape=LATENT_SHAPE)
    torch.testing.assert_close(both[1], plain[1], rtol=0, atol=1e-3)


def test_a_word_with_another_number_of_layers_is_refused(base: Base):
    token = ConceptToken("<deep>", {"clip_l": torch.zeros(16, 1, WIDTH)})
    with pytest.raises(ConceptError, match=r"'<deep>' has vectors for 16 .* this model has 6"):
        base.encode_prompts(["<deep>"], [token])


def test_selected_rows_keep_all_their_layers(base: Base, words: tuple[ConceptToken, ...]):
    conditioning: Conditioning = base.encode_prompts(PROMPTS, words)[torch.tensor([2, 0])]
    assert conditioning.states.shape == (2, 32, LAYERS * WIDTH)
