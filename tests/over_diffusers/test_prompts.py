"""Prompts are encoded as in diffusers' own pipelines, with learned words replaced by their vectors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clora_core.errors import ConceptError
from clora_core.model.concept import ConceptToken
from clora_core.over_diffusers.base import DiffusersBase, starter_parts
from clora_core.starter.model import build_starter
from tests.families import FAMILIES, LENGTH
from tests.saved_models import Saved, opened, prediction_of, random, same, saved_model, word_like

PROMPTS = ["a photo", "", "as many letters fit"]


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest) -> Saved:
    return saved_model(request.param)


@pytest.fixture
def base(saved: Saved) -> DiffusersBase:
    return opened(saved.family)


@pytest.fixture(scope="module")
def starter() -> DiffusersBase:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersBase(starter_parts(build_starter()))


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_encodes_them(saved: Saved, base: DiffusersBase) -> None:
    states, _, *pooled = saved.pipeline.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    conditioning = base.encode_prompts(PROMPTS, [ConceptToken("<x>", {"clip_l": torch.zeros(1, 1, 1)})])
    same(conditioning.states, states)
    assert conditioning.states.shape == (3, LENGTH, base.family.text_width)
    assert (conditioning.pooled is None) == (not pooled)
    if pooled:
        same(conditioning.pooled, pooled[0])


@pytest.mark.parametrize("prompt", [*PROMPTS, "!", "  two  spaces ", "UPPER's"])
def test_without_words_the_ids_are_the_plain_ones(base: DiffusersBase, prompt: str) -> None:
    seen: list[Tensor] = []
    for encoder in base.encoders:
        handle = encoder.table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
        base.encode_prompts([prompt], [])
        handle.remove()
        length = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        expected = encoder.tokenizer([prompt], return_tensors="pt", **length)
        assert seen[-1].equal(expected.input_ids)


@torch.no_grad()
def test_word_with_the_vectors_of_a_known_word_encodes_as_that_word(base: DiffusersBase) -> None:
    token = word_like(base, "ab")
    assert token.words == 2
    spoken = base.encode_prompts(["a <x>, <x> or c", "(<x>)", "none"], [token])
    written = base.encode_prompts(["a ab, ab or c", "(ab)", "none"], [])
    same(spoken.states, written.states)
    if written.pooled is not None:
        same(spoken.pooled, written.pooled)


@torch.no_grad()
def test_word_inside_another_word_is_ignored(base: DiffusersBase) -> None:
    token = word_like(base, "zz", word="sks")
    assert base.encode_prompts(["masks"], [token]).states.equal(base.encode_prompts(["masks"], []).states)
    assert not base.encode_prompts(["sks"], [token]).states.equal(base.encode_prompts(["sks"], []).states)


@torch.no_grad()
def test_longest_matching_word_wins(base: DiffusersBase) -> None:
    tokens = [word_like(base, "a"), word_like(base, "b", word="<x>-2")]
    same(base.encode_prompts(["<x>-2 <x>"], tokens).states, base.encode_prompts(["b a"], []).states)


def test_gradients_reach_the_words_vectors_and_nothing_else(base: DiffusersBase) -> None:
    before = {name: table.clone() for name, table in base.vocabulary().items()}
    token = word_like(base, "ab")
    conditioning = base.encode_prompts(["a <x>", "b"], [token])
    prediction_of(base, conditioning).square().mean().backward()
    for vectors in token.vectors.values():
        assert vectors.grad is not None and (vectors.grad.abs().sum(-1) > 0).all()
    assert all(parameter.grad is None for encoder in base.encoders for parameter in encoder.model.parameters())
    assert all(parameter.grad is None for parameter in base.unet.parameters())
    for encoder in base.encoders:
        assert encoder.table.weight.equal(before[encoder.name])
        assert not encoder.table._forward_hooks


def test_gradient_of_a_vector_matches_finite_differences(starter: DiffusersBase) -> None:
    token = ConceptToken("<x>", {"clip_l": random(1, 2, 128).requires_grad_()})
    direction = random(1, 2, 128, seed=1)

    def value(vectors: Tensor) -> Tensor:
        states = starter.encode_prompts(["a <x> photo"], [replace(token, vectors={"clip_l": vectors})]).states
        return (states.double() * random(*states.shape, seed=2)).sum()

    value(token.vectors["clip_l"]).backward()
    with torch.no_grad():
        ahead, behind = (value(token.vectors["clip_l"] + step * direction) for step in (1e-2, -1e-2))
    grad = token.vectors["clip_l"].grad
    assert grad is not None
    assert (grad * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-2, rel=1e-2)


def test_hook_is_removed_when_encoding_fails(starter: DiffusersBase, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = starter.encoders[0]

    def broken(*inputs: object, **options: object) -> None:
        raise RuntimeError("interrupted")

    monkeypatch.setattr(encoder.model.encoder, "forward", broken)
    with pytest.raises(RuntimeError, match="interrupted"):
        starter.encode_prompts(["<x>"], [word_like(starter, "red")])
    assert not encoder.table._forward_hooks


@torch.no_grad()
def test_a_long_prompt_is_read_in_chunks(base: DiffusersBase) -> None:
    """Every chunk as a prompt of its own; the pooled vector is the first one's, and words keep their places."""
    room, token = LENGTH - 2, word_like(base, "a b")
    first, second = "x" * (room - 1), "y" * 5
    both = base.encode_prompts([f"{first} <x> {second}"], [token])  # the word's second vector is in the second chunk
    apart = base.encode_prompts([f"{first} a", f"b {second}"], [])
    same(both.states, apart.states.flatten(0, 1)[None])
    if both.pooled is not None:
        same(both.pooled, apart.pooled[:1])
    assert both.places["<x>"][0].nonzero().flatten().tolist() == [room, LENGTH + 1]


@torch.no_grad()
def test_batch_of_different_lengths_matches_single_prompts(base: DiffusersBase) -> None:
    token = word_like(base, "ab")
    prompts = [f"{'x' * LENGTH} <x> {'y' * LENGTH}", "a <x>", f"{'z' * LENGTH} <x>", "b"]
    together = base.encode_prompts(prompts, [token])
    assert together.lengths is not None and together.lengths.tolist() == [3 * LENGTH, LENGTH, 2 * LENGTH, LENGTH]
    predictions = prediction_of(base, together)
    for row, prompt in enumerate(prompts):
        alone = base.encode_prompts([prompt], [token])
        assert alone.lengths is None
        same(together.states[row, : alone.states.shape[1]], alone.states[0])
        assert not together.states[row, alone.states.shape[1] :].any()
        same(predictions[row], prediction_of(base, together[torch.tensor([row] * 4)])[row])


def test_words_that_do_not_fit_the_encoders_are_refused(base: DiffusersBase) -> None:
    width = base.encoders[0].width
    with pytest.raises(ConceptError, match="has vectors for 3 cross-attentions, but this model has"):
        token = ConceptToken("<x>", {encoder.name: torch.zeros(3, 1, encoder.width) for encoder in base.encoders})
        base.encode_prompts(["a <x>"], [token])
    with pytest.raises(ConceptError, match=r"vectors for other \(4 wide\), but .* are clip_"):
        base.encode_prompts(["a <x>"], [ConceptToken("<x>", {"other": torch.zeros(1, 1, 4)})])
    with pytest.raises(ConceptError, match=f"{width} wide"):
        base.encode_prompts(["<x>"], [ConceptToken("<x>", {base.encoders[0].name: torch.zeros(1, 1, width + 1)})])


def test_vectors_of_a_known_word_are_its_embedding_rows(base: DiffusersBase) -> None:
    for name, vectors in base.word_vectors("ab").items():
        encoder = next(encoder for encoder in base.encoders if encoder.name == name)
        assert vectors.equal(base.vocabulary()[name][encoder.tokenizer(["ab"])["input_ids"][0][1:-1]])
    with pytest.raises(ConceptError, match="does not know ''"):
        base.word_vectors("")
