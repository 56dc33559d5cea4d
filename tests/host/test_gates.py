"""Word-gated exhibits act at the places of their word in stock sampling, and nowhere else."""

import dataclasses

import comfy.sample
import pytest
import torch
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.model.attach import attached
from clora_pack.clora_core.model.attachment import Gate
from clora_pack.clora_core.museum.museum import Museum, viewing
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import PLACES
from clora_pack.nodes.host.model import slots_of
from clora_pack.nodes.host.view import base_beneath, view
from torch import Tensor, nn

from .models import Models, random_museum, small_models

PROMPT = "a photo of <one>, at night"


def gated(museum: Museum, applied: str = "word") -> Museum:
    exhibits = tuple(dataclasses.replace(e, recipe=Recipe(applied=applied)) for e in museum.exhibits)
    return dataclasses.replace(museum, exhibits=exhibits)


def encoded(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sampled(model, positive: list, negative: list, *, steps: int = 2) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, steps, 3.0, "euler", "normal", positive, negative, empty, seed=0, disable_pbar=True
    )


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request: pytest.FixtureRequest) -> Models:
    return small_models(request.param)


def museum_over(models: Models, applied: str = "word") -> Museum:
    return gated(random_museum(HostBase(*models), "<one>", "<two>", size=0.3), applied)


@pytest.mark.parametrize("applied", ["word", "onwards"])
def test_sampling_adds_gated_deltas_at_the_places_of_the_word(models: Models, applied: str):
    model, clip, _ = models
    museum = museum_over(models, applied)
    showing, speaking = view(model, clip, museum, {"<one>": 0.7})
    positive, negative = encoded(speaking, PROMPT), encoded(speaking, "")
    states, mask = positive[0][0][0], positive[0][1][PLACES]["<one>"][0]
    if applied == "onwards":
        mask = mask.cumsum(0) > 0
    mask, modules = mask.to(model.load_device), slots_of(model)

    def adding(delta):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            ours = (inputs[0] == states.to(inputs[0])).all(-1) & mask  # no other prompt has these states there
            return output + (inputs[0] * ours[..., None]) @ (0.7 * delta.up @ delta.down).T.to(inputs[0])

        return hook

    plain = sampled(model, positive, negative)
    deltas = museum.exhibit("<one>").deltas
    handles = [modules[projection].module.register_forward_hook(adding(delta)) for projection, delta in deltas.items()]
    expected = sampled(model, positive, negative)
    for handle in handles:
        handle.remove()
    found = sampled(showing, positive, negative)
    moved = (expected - plain).norm()
    assert moved > 1e-3 * plain.norm(), "the delta matters"
    assert (found - expected).norm() < 1e-3 * moved
    assert torch.equal(sampled(showing.clone(), positive, negative), found)


def test_prompts_without_the_word_give_bit_equal_base_pictures(models: Models):
    model, clip, _ = models
    showing, speaking = view(model, clip, museum_over(models))
    positive, negative = encoded(speaking, "a photo of a cat"), encoded(speaking, "")
    expected = sampled(model, encoded(clip, "a photo of a cat"), encoded(clip, ""))
    assert torch.equal(sampled(showing, positive, negative), expected)


def test_weights_and_repeated_words_keep_their_places(models: Models):
    _, clip, _ = models
    _, speaking = view(models[0], clip, museum_over(models))
    places = encoded(speaking, "(<one>:1.2) and <two> and <one>")[0][1][PLACES]
    assert places["<one>"][0].nonzero().flatten().tolist() == [1, 5]
    assert places["<two>"][0].nonzero().flatten().tolist() == [3]


def test_prompts_of_other_lengths_can_be_sampled(models: Models):
    model, clip, _ = models
    showing, speaking = view(model, clip, museum_over(models))
    positive = encoded(speaking, PROMPT)
    longer = [[torch.cat([positive[0][0], positive[0][0]], dim=1), positive[0][1]]]
    assert sampled(showing, longer, encoded(speaking, "")).isfinite().all()
    assert sampled(showing, longer, encoded(clip, "")).isfinite().all(), "as from a CLIP that knows no word"


def test_base_beneath_removes_gated_deltas(models: Models):
    model, clip, _ = models
    showing, speaking = view(model, clip, museum_over(models))
    positive, negative = encoded(speaking, PROMPT), encoded(speaking, "")
    plain = sampled(model, positive, negative)
    assert not torch.equal(sampled(showing, positive, negative), plain)
    beneath, _ = base_beneath(showing, speaking)
    assert torch.equal(sampled(beneath, positive, negative), plain)
    assert torch.equal(sampled(model, positive, negative), plain)


def test_base_predicts_as_the_sampler(models: Models):
    base = HostBase(*models)
    museum = museum_over(models)
    conditioning = base.encode_prompts([PROMPT, "a photo of a cat"], museum.tokens)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([500, 500])
    plain = base.predict(noisy, times, conditioning)
    with viewing(base, museum.dense(), museum.gated):
        found = base.predict(noisy, times, conditioning)
    with attached(base, museum.exhibit("<one>").deltas, Gate("<one>")):
        assert torch.equal(found, base.predict(noisy, times, conditioning))
    assert not torch.equal(found[0], plain[0])
    torch.testing.assert_close(found[1], plain[1], rtol=0, atol=0)
