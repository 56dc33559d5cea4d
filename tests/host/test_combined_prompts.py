"""Gated and layer-wise words after stock nodes that combine prompts, and CLIP skips other than the learned one."""

import dataclasses

import pytest
import torch
from clora_pack.clora_core.learning.start import first_token
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.model.concept import Concept
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host import conditioning, remembered, showing
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import LAYERS, PLACES
from clora_pack.nodes.host.view import view

import nodes as stock_nodes

from .models import Models, extra, pictures, random_museum, small_models, stock
from .test_gates import encoded, gated, sampled
from .test_layers import deepened

WORD, PLAIN = "a photo of <one>, at night", "a photo of a cat"
LENGTH = 77


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request: pytest.FixtureRequest) -> Models:
    return small_models(request.param)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    for module in (conditioning, showing):
        monkeypatch.setattr(module, "warn", texts.append)
    return texts


def museum_over(models: Models) -> Museum:
    return gated(random_museum(HostBase(*models), "<one>", "<two>", size=0.3))


def places_in(model, conditioning: list) -> dict[int, list[int]]:
    """Number of a gate → where the sampler opens it."""
    ((states, options),) = conditioning
    conds = model.get_model_object("extra_conds")(
        cross_attn=states, noise=torch.zeros(1, 4, 8, 8), device="cpu", width=64, height=64, **options
    )
    opened = conds[PLACES].cond[0]
    return {number: opened[:, number].nonzero().flatten().tolist() for number in range(opened.shape[1])}


def test_word_is_found_after_conditioning_concat(models: Models, messages: list[str]):
    model, clip, _ = models
    showing_model, speaking = view(model, clip, museum_over(models))
    plain, word = encoded(speaking, PLAIN), encoded(speaking, WORD)
    own = places_in(showing_model, word)
    assert own[0] == [4]
    base_clips = encoded(clip, PLAIN)  # from a CLIP that knows no word
    for first in (plain, base_clips):
        joined = stock(stock_nodes.ConditioningConcat, conditioning_to=first, conditioning_from=word)
        assert places_in(showing_model, joined) == {0: [LENGTH + 4], 1: []}
    joined = stock(stock_nodes.ConditioningConcat, conditioning_to=word, conditioning_from=encoded(speaking, "<two>"))
    assert places_in(showing_model, joined) == {0: [4], 1: [LENGTH + 1]}
    assert not messages
    negative = encoded(speaking, "")
    joined = stock(stock_nodes.ConditioningConcat, conditioning_to=plain, conditioning_from=word)
    assert not torch.equal(sampled(showing_model, joined, negative), sampled(model, joined, negative))


def test_frozen_word_does_not_act_in_a_prompt_of_the_words_it_stands_for(models: Models, messages: list[str]):
    """The states of both prompts are the same; in whatever order they are encoded."""
    model, clip, _ = models
    own = HostBase(*models)
    museum = gated(random_museum(own, "<one>"))
    token = first_token(own, Concept("<one>", pictures(1), vectors=0, start="a cat"), Recipe(token="frozen"))
    frozen = dataclasses.replace(museum.exhibits[0], token=token)
    showing_model, speaking = view(model, clip, dataclasses.replace(museum, exhibits=(frozen,)))
    plain, word = encoded(speaking, "a photo of a cat"), encoded(speaking, "a photo of <one>")
    assert torch.equal(plain[0][0], word[0][0])
    assert places_in(showing_model, word)[0] and not places_in(showing_model, plain)[0]
    assert not places_in(showing_model, encoded(clip, "a photo of a cat"))[0]
    joined = stock(stock_nodes.ConditioningConcat, conditioning_to=plain, conditioning_from=word)
    assert min(places_in(showing_model, joined)[0]) >= LENGTH


def test_word_is_found_after_conditioning_combine(models: Models, messages: list[str]):
    model, clip, _ = models
    _, speaking = view(model, clip, museum_over(models))
    both = stock(
        stock_nodes.ConditioningCombine, conditioning_1=encoded(speaking, PLAIN), conditioning_2=encoded(speaking, WORD)
    )
    assert [list(options[PLACES]) for _, options in both] == [[], ["<one>"]] and not messages


def test_conditioning_average_keeps_words_of_its_first_prompt_and_warns_about_others(
    models: Models, messages: list[str]
):
    model, clip, _ = models
    showing_model, speaking = view(model, clip, museum_over(models))
    plain, word = encoded(speaking, PLAIN), encoded(speaking, WORD)
    average = stock_nodes.ConditioningAverage
    kept = stock(average, conditioning_to=word, conditioning_from=plain, conditioning_to_strength=0.5)
    assert places_in(showing_model, kept) == {0: [4], 1: []}
    messages.clear()
    lost = stock(average, conditioning_to=plain, conditioning_from=word, conditioning_to_strength=0.5)
    assert places_in(showing_model, lost) == {0: [], 1: []}
    assert messages and "act at the words of conditioning_to only" in messages[0]
    messages.clear()
    (emptied,) = stock_nodes.ConditioningZeroOut().zero_out(word)
    places_in(showing_model, emptied)
    places_in(showing_model, plain)
    assert not messages


def test_word_is_found_in_either_text_of_sdxl(messages: list[str]):
    models = small_models("sdxl")
    model, clip, _ = models
    showing_model, speaking = view(model, clip, museum_over(models))
    node = extra("nodes_clip_sdxl").CLIPTextEncodeSDXL
    size = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
    for text_g, text_l, expected in (
        (WORD, PLAIN, {0: [4], 1: []}),
        (PLAIN, WORD, {0: [4], 1: []}),
        ("<two> at sea", WORD, {0: [4], 1: [1]}),
        ("<one>", WORD, {0: [1, 4], 1: []}),
    ):
        (found,) = node.execute(speaking, text_g=text_g, text_l=text_l, **size).args
        options = {key: value for key, value in found[0][1].items() if key not in size}
        assert places_in(showing_model, [[found[0][0], options]]) == expected


def test_layer_wise_words_keep_their_layers_after_conditioning_concat(models: Models, messages: list[str]):
    """As long as a node keeps the word's own conditioning; after that, a message says what is lost."""
    model, clip, _ = models
    museum = deepened(random_museum(HostBase(*models), "<one>", "<two>", size=0.1), HostBase(*models))
    showing_model, speaking = view(model, clip, museum)
    plain, word = encoded(speaking, PLAIN), encoded(speaking, WORD)
    ((states, options),) = stock(stock_nodes.ConditioningConcat, conditioning_to=plain, conditioning_from=word)
    inputs = {"cross_attn": states, "noise": torch.zeros(1, 4, 8, 8), "device": "cpu", "width": 64, "height": 64}
    conds = showing_model.get_model_object("extra_conds")(**inputs, **options)
    wide = conds[LAYERS].cond
    layers = wide.shape[-1] // states.shape[-1]
    assert torch.equal(wide[:, :LENGTH], plain[0][0].repeat(1, 1, layers))
    assert torch.equal(wide[:, LENGTH:], word[0][1][LAYERS]) and not messages
    del word
    showing_model.get_model_object("extra_conds")(**inputs, **options)
    assert messages == [showing.LOST]


def test_remembered_chunks_are_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remembered, "CHUNKS_MOST", 3)
    monkeypatch.setattr(remembered, "_chunks", type(remembered._chunks)())
    for number in range(5):
        remembered.remember(torch.full((1, 4, 2), float(number)), 4, {}, frozenset(), None)
    assert len(remembered._chunks) == 3
    assert remembered.recalled(torch.full((1, 4, 2), 4.0))[0][1] is not None
    assert remembered.recalled(torch.full((1, 4, 2), 1.0))[0][1] is None
    assert remembered.recalled(torch.zeros(1, 5, 2)) == []


def test_different_clip_skip_is_reported(models: Models, messages: list[str]):
    model, clip, _ = models
    usual = HostBase(*models).clip_skip
    museum = random_museum(HostBase(*models), "<one>", "<two>")
    first, second = museum.exhibits
    learned = (dataclasses.replace(first, token=dataclasses.replace(first.token, clip_skip=usual + 1)), second)
    _, speaking = view(model, clip, dataclasses.replace(museum, exhibits=learned))
    encoded(speaking, "a photo of <two>")
    assert not messages
    encoded(speaking, WORD)
    assert messages == [
        f"Learned with another CLIP skip than {usual}: <one> (CLIP skip {usual + 1}). They may look different. Set "
        f"stop_at_clip_layer of CLIP Set Last Layer to -{usual + 1}, or add --clip-skip {usual + 1} to the command."
    ]
    messages.clear()
    (set_back,) = stock_nodes.CLIPSetLastLayer().set_last_layer(speaking, -usual - 1)
    encoded(set_back, WORD)
    assert not messages
    (nearer,) = stock_nodes.CLIPSetLastLayer().set_last_layer(clip, -usual - 1)
    assert HostBase(model, nearer).clip_skip == usual + 1
