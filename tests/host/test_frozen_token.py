"""A frozen token in the real host: the text encoder runs before the first step, and the word is its phrase."""

import math
from typing import Any

import comfy.model_management
import pytest
import torch
from clora_pack.clora_core.learning.fitting import Device, fitted
from clora_pack.clora_core.learning.learn import Learning, learn
from clora_pack.clora_core.method.draft import Draft
from clora_pack.clora_core.method.recipe import RECIPES, Recipe, recipe_named
from clora_pack.clora_core.model.concept import Concept, ConceptToken
from clora_pack.clora_core.model.families import FAMILIES
from clora_pack.clora_core.museum.file import load_museum, save_museum
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host import memory
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import word_at
from clora_pack.nodes.host.view import view
from clora_pack.nodes.host.words import WordTokenizer

import nodes as stock_nodes

from .models import ordinary, pictures, small_models
from .small_transformers import NETWORKS, small_transformer

KINDS = ["sd15", *(family for family in ("wan", "flux", "qwen-image", "anima", "z-image") if family in NETWORKS)]
WORD, PHRASE = "<one>", "a b"  # the small tables have few rows


def concept(base: HostBase) -> Concept:
    captions = ("a photo of {word}", "a {word} in the snow", "a photo of {word}")
    return Concept(WORD, pictures(3, side=8 * base.family.least_side), captions=captions, start=PHRASE)


def recipe(base: HostBase, **numbers: object) -> Recipe:
    method = "word-gated-onwards" if base.family.reads == "shared" else "preservation"
    quick = {"rank": 2, "steps": 3, "batch_size": 2, "learning_rate": 2e-2, "token": "frozen"}
    return recipe_named(method, **{**quick, **numbers})


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_encoder_rests_while_the_word_is_learned_and_the_phrase_shows_it(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    model, clip, vae = small_models(kind) if kind == "sd15" else small_transformer(kind)
    base = HostBase(model, clip, vae)
    object.__setattr__(base, "family", type(base.family)(**{**vars(base.family), "captions": ("", "a hat")}))
    loaded: list[list[Any]] = []
    load = comfy.model_management.load_models_gpu

    def watched(models: Any, *more: Any, **options: Any) -> Any:
        loaded.append([patcher.model for patcher in models])
        return load(models, *more, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watched)
    text = clip.cond_stage_model
    runs, at_steps = [], []
    handles = [encoder.register_forward_hook(lambda *call: runs.append(call)) for encoder in text.children()]
    with ordinary():
        (exhibit,) = learn(
            base,
            Museum(base.fingerprint),
            [concept(base)],
            recipe(base),
            report=lambda progress: at_steps.append((progress.loss, len(runs), len(loaded))),
        )
    for handle in handles:
        handle.remove()
    assert all(math.isfinite(loss) for loss, _, _ in at_steps)
    assert len({count for _, count, _ in at_steps}) == 1, "no text is encoded after the first step"
    learning = loaded[: at_steps[-1][2]]
    assert learning[-1] == [base.model.model], "the network was loaded last, alone"
    assert kind == "anima" or not any(text in models and base.model.model in models for models in learning)
    assert all(weight.grad is None for weight in text.parameters())
    assert exhibit.token.phrase == PHRASE

    own, plain = (
        base.encode_prompts([f"a photo of {words} in the snow"], tokens)
        for words, tokens in ((WORD, [exhibit.token]), (PHRASE, []))
    )
    assert torch.equal(own.states, plain.states) and own.places[WORD].any()
    museum = load_museum(save_museum(Museum(base.fingerprint, (exhibit,)), tmp_path / "m.safetensors"))
    _, speaking = view(model, clip, museum)
    encode = stock_nodes.CLIPTextEncode().encode
    ours, theirs = (
        encode(each, f"a photo of {words} in the snow")[0] for each, words in ((speaking, WORD), (clip, PHRASE))
    )
    assert torch.equal(ours[0][0], theirs[0][0])
    assert ours[0][1]["clora_places"][WORD].any()


def test_only_the_network_is_counted():
    base = HostBase(*small_models("sd15"))
    needs = [
        memory.needed_bytes(base, recipe(base, token=token), Museum(base.fingerprint), 64, 64)
        for token in ("learned", "frozen")
    ]
    assert needs[0] - needs[1] == pytest.approx(base.sources[1].patcher.model_size(), rel=1e-6)


def test_it_is_the_default_where_the_text_encoder_is_large():
    device = Device(2**40, "bf16")
    draft = Draft(RECIPES["preservation"], open=True)
    chosen = {family.name: fitted(draft, family, device, lambda choice: 0).token for family in FAMILIES}
    assert {name for name, token in chosen.items() if token == "learned"} == {"starter", "sd15", "sd2", "sdxl", "anima"}
    flux = next(family for family in FAMILIES if family.name == "flux")
    counted = Concept(WORD, pictures(1, side=64), vectors=2)
    assert fitted(draft, flux, device, lambda choice: 0, [counted]).token == "learned"
    for numbers in ({"shuffle_tags": True}, {"tag_dropout": 0.1}, {"token_learning_rate": 0.1}):
        assert fitted(draft.with_numbers(**numbers), flux, device, lambda choice: 0).token == "learned"
    alone = Draft(RECIPES["textual-inversion"])
    assert fitted(alone, flux, device, lambda choice: 0).token == "learned"


def test_the_node_says_it():
    base = HostBase(*small_models("sd15"))
    notes = Learning(base, Museum(base.fingerprint), (concept(base),), recipe(base)).notes
    assert any("“a b”, and the text encoder is not needed" in note for note in notes)


def test_a_tokenizer_without_a_text_encoder_reads_the_ids_of_the_phrase():
    """As Anima's second one, whose ids the network reads beside the first one's states."""

    def plain(text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [*map(len, text.split()), 1]}

    frozen = ConceptToken(WORD, {"qwen3_06b": torch.zeros(1, 3, 8)}, phrase="a very red cat")
    learned = ConceptToken("<two>", {"qwen3_06b": torch.zeros(1, 3, 8)})
    tokenizer = WordTokenizer(plain, "t5xxl", 0, 1, {token.word: token for token in (frozen, learned)})
    pieces = tokenizer("photo of <one> and <two>")["input_ids"]
    assert pieces == [5, 2, 1, 4, 3, 3, 3, 0, 0, 0, 1]
    assert [word_at(piece) for piece in pieces] == [None, None, *[WORD] * 4, None, *["<two>"] * 3, None]
