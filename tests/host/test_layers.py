"""Layer-wise words in stock sampling: every cross-attention reads the prompt with its own vectors."""

import dataclasses

import pytest
import torch
from clora_pack.clora_core.errors import ConceptError
from clora_pack.clora_core.model.concept import ConceptToken
from clora_pack.clora_core.model.layers import layer_numbers
from clora_pack.clora_core.museum.museum import Museum, viewing
from clora_pack.nodes.host import text
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import LAYERS
from clora_pack.nodes.host.model import slots_of
from clora_pack.nodes.host.view import base_beneath, view
from clora_pack.nodes.host.words import with_words
from torch import Tensor, nn

from .models import Models, concept, random_museum, recipe, small_models, taught
from .test_gates import encoded, sampled

PROMPT = "a photo of <one>, (<two>:1.3) at night"


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request: pytest.FixtureRequest) -> Models:
    return small_models(request.param)


def deepened(museum: Museum, base: HostBase) -> Museum:
    """The museum with vectors of its own for each cross-attention in its first word."""
    layers = len(set(layer_numbers(base.slots).values()))
    first, *others = museum.exhibits
    rng = torch.Generator().manual_seed(4)
    vectors = {
        name: 0.3 * torch.randn(layers, 2, value.shape[-1], generator=rng)
        for name, value in first.token.vectors.items()
    }
    return dataclasses.replace(
        museum, exhibits=(dataclasses.replace(first, token=ConceptToken(first.word, vectors)), *others)
    )


def museum_over(models: Models) -> Museum:
    base = HostBase(*models)
    return deepened(random_museum(base, "<one>", "<two>", size=0.1), base)


def flattened(museum: Museum, layer: int) -> list[ConceptToken]:
    return [
        ConceptToken(t.word, {name: v[min(layer, len(v) - 1)][None] for name, v in t.vectors.items()})
        for t in museum.tokens
    ]


def test_every_cross_attention_reads_its_own_layer_in_sampling(models: Models):
    model, clip, _ = models
    museum = museum_over(models)
    showing, speaking = view(model, clip, museum)
    slots = slots_of(model)
    numbers = layer_numbers(slots)
    positive, negative = encoded(speaking, PROMPT), encoded(speaking, "")
    first = positive[0][0]
    alone = [encoded(with_words(clip, flattened(museum, n)), PROMPT)[0][0] for n in range(max(numbers.values()) + 1)]
    assert torch.equal(first, alone[0]), "what others read of the prompt is its first layer"
    assert torch.equal(positive[0][1][LAYERS], torch.cat(alone, dim=-1))
    flat = dataclasses.replace(
        museum,
        exhibits=tuple(
            dataclasses.replace(e, token=t) for e, t in zip(museum.exhibits, flattened(museum, 0), strict=True)
        ),
    )
    plain, plain_speaking = view(model, clip, flat)

    def own(layer: int):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            ours = (inputs[0] == first.to(inputs[0])).all(-1).all(-1)
            return (torch.where(ours[:, None, None], alone[layer].to(inputs[0]), inputs[0]),)

        return hook

    without = sampled(plain, encoded(plain_speaking, PROMPT), negative)
    handles = [slots[projection].module.register_forward_pre_hook(own(layer)) for projection, layer in numbers.items()]
    expected = sampled(plain, encoded(plain_speaking, PROMPT), encoded(plain_speaking, ""))
    for handle in handles:
        handle.remove()
    found = sampled(showing, positive, negative)
    assert (expected - without).norm() > 1e-3 * without.norm(), "the layers matter"
    assert (found - expected).norm() < 1e-3 * (expected - without).norm()
    assert torch.equal(sampled(showing.clone(), positive, negative), found)


def test_prompts_without_the_word_are_unchanged(models: Models):
    model, clip, _ = models
    museum = museum_over(models)
    showing, speaking = view(model, clip, museum)
    positive, negative = encoded(speaking, "a cat"), encoded(speaking, "")
    assert LAYERS not in positive[0][1]
    plain, _ = view(model, clip, dataclasses.replace(museum, exhibits=museum.exhibits[1:]))
    assert sampled(showing, positive, negative).isfinite().all()
    longer = [[torch.cat([positive[0][0]] * 2, dim=1), positive[0][1]]]
    assert sampled(showing, longer, negative).isfinite().all()
    assert plain is not showing


@pytest.mark.usefixtures("clones_stay_apart")
def test_base_beneath_removes_layer_wise_words(models: Models):
    model, clip, _ = models
    museum = museum_over(models)
    showing, speaking = view(model, clip, museum)
    positive, negative = encoded(speaking, PROMPT), encoded(speaking, "")
    before = sampled(model, positive, negative)
    assert not torch.equal(sampled(showing, positive, negative), before)
    beneath, _ = base_beneath(showing, speaking)
    assert torch.equal(sampled(beneath, positive, negative), before)
    assert torch.equal(sampled(model, positive, negative), before)


def test_base_reads_layers_as_the_sampler(models: Models):
    base, museum = HostBase(*models), museum_over(models)
    model, clip, _ = models
    _, speaking = view(model, clip, museum)
    conditioning = base.encode_prompts(["a photo of <one> at night", "a cat"], museum.tokens)
    told = encoded(speaking, "a photo of <one> at night")[0][1][LAYERS]
    torch.testing.assert_close(conditioning.states[0].cpu(), told[0].float().cpu(), rtol=1e-4, atol=1e-4)
    narrow = base.encode_prompts(["a cat"], museum.tokens).states
    layers = len(set(layer_numbers(base.slots).values()))
    torch.testing.assert_close(conditioning.states[1], narrow[0].repeat(1, layers), rtol=1e-4, atol=1e-4)
    with viewing(base, museum.dense()):
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        assert base.predict(noisy, torch.tensor([500, 500]), conditioning).isfinite().all()
    assert not any(slot.module._forward_pre_hooks for slot in base.slots.values())


def test_base_encodes_many_rows_in_batches(models: Models, monkeypatch: pytest.MonkeyPatch):
    base, museum = HostBase(*models), museum_over(models)
    prompts = ["a photo of <one> at night", "a cat"]
    whole = base.encode_prompts(prompts, museum.tokens)
    monkeypatch.setattr(text, "ROWS_AT_ONCE", 5)
    parts = base.encode_prompts(prompts, museum.tokens)
    torch.testing.assert_close(parts.states, whole.states, rtol=1e-4, atol=1e-4)
    assert (parts.pooled is None) == (whole.pooled is None)
    if whole.pooled is not None:
        torch.testing.assert_close(parts.pooled, whole.pooled, rtol=1e-4, atol=1e-4)


def test_layer_wise_word_can_be_learned(models: Models):
    base = HostBase(*models)
    layers = len(set(layer_numbers(base.slots).values()))
    museum = taught(base, Museum(base.fingerprint), concept("<one>"), dataclasses.replace(recipe(), layer_wise=True))
    for vectors in museum.exhibits[0].token.vectors.values():
        assert vectors.shape[0] == layers and len(torch.unique(vectors[:, 0], dim=0)) == layers


def test_word_with_another_number_of_layers_is_refused(models: Models):
    base = HostBase(*models)
    token = ConceptToken("<one>", {n: torch.zeros(2, 1, w) for n, w in base.family.encoders.items()})
    with pytest.raises(ConceptError, match="has vectors for 2 cross-attentions, but this model has"):
        base.encode_prompts(["<one>"], [token])
