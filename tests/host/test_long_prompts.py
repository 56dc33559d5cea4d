"""Training encodes long prompts in chunks, as CLIP Text Encode does."""

import dataclasses

import pytest
import torch
from clora_pack.clora_core.learning.learn import learn
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.museum.museum import Museum, viewing
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import LAYERS, PLACES
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import view

from .models import Models, concept, ordinary, random_museum, recipe, small_models
from .test_gates import encoded, sampled
from .test_layers import deepened

LONG = "a red hat, " * 25 + "a photo of <one>, " + "blue, " * 40 + "<two>"


@pytest.fixture(scope="module", params=["starter", "sd15", "sdxl"])
def models(request: pytest.FixtureRequest) -> Models:
    return load_starter() if request.param == "starter" else small_models(request.param)


def museum_over(models: Models, applied: str = "everywhere") -> Museum:
    museum = random_museum(HostBase(*models), "<one>", "<two>", size=0.2)
    exhibits = (dataclasses.replace(exhibit, recipe=Recipe(applied=applied)) for exhibit in museum.exhibits)
    return dataclasses.replace(museum, exhibits=tuple(exhibits))


@torch.no_grad()
def test_states_and_places_match_clip_text_encode(models: Models):
    model, clip, _ = models
    base = HostBase(*models)
    museum = deepened(museum_over(models), base)
    _, speaking = view(model, clip, museum)
    found = base.encode_prompts([LONG, "a photo of <one>", LONG], museum.tokens)
    for row, prompt in ((0, LONG), (1, "a photo of <one>"), (2, LONG)):
        states, extra = encoded(speaking, prompt)[0]
        length = states.shape[1]
        own = extra[LAYERS].to(found.states)
        torch.testing.assert_close(found.states[row : row + 1, :length], own, rtol=1e-5, atol=1e-5)
        assert not found.states[row, length:].any()
        for word, mask in extra[PLACES].items():
            assert torch.equal(found.places[word][row, :length].cpu(), mask[0]) and mask.any()
        if found.pooled is not None:
            torch.testing.assert_close(found.pooled[row : row + 1].cpu(), extra["pooled_output"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("applied", ["word", "onwards"])
def test_gates_open_in_every_chunk_as_in_sampling(models: Models, applied: str):
    """Prompts of different lengths in one batch are predicted as each alone, and gated words act in any chunk."""
    base, museum = HostBase(*models), museum_over(models, applied)
    prompts = [LONG, "a photo of <one>"]
    noisy = torch.randn(2, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([500, 300])
    with torch.no_grad(), viewing(base, {}, museum.gated):
        both = base.predict(noisy, times, base.encode_prompts(prompts, museum.tokens))
        for row, prompt in enumerate(prompts):
            alone = base.encode_prompts([prompt], museum.tokens)
            expected = base.predict(noisy[row : row + 1], times[row : row + 1], alone)
            torch.testing.assert_close(both[row : row + 1], expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain = base.predict(noisy, times, base.encode_prompts(prompts, museum.tokens))
    assert not torch.equal(both[0], plain[0]) and not torch.equal(both[1], plain[1])


def test_long_prompt_can_be_sampled_with_a_short_negative(models: Models):
    model, clip, _ = models
    if model.model.latent_format.latent_channels != 4:
        pytest.skip("the sampling of these tests is for latents of four channels")
    showing, speaking = view(model, clip, museum_over(models, "word"))
    long, other = encoded(speaking, LONG), encoded(speaking, LONG.replace("<two>", "green"))
    assert not torch.equal(
        sampled(showing, long, encoded(speaking, "")), sampled(showing, other, encoded(speaking, ""))
    )


def test_words_in_the_second_chunk_are_learned():
    models = load_starter()
    with ordinary():
        base = HostBase(*models)
        exhibits = []
        for end in ("a blue ball", "a green house"):
            captions = (f"{{word}}, {'a red hat, ' * 30}{end}", *["a photo of {word}"] * 3)
            taught = concept(captions=captions)
            exhibits += learn(base, Museum(base.fingerprint), [taught], recipe(steps=2, batch_size=4))
    assert not exhibits[0].same_as(exhibits[1])
