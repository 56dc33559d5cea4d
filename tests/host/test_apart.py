"""Words that are kept apart: each is encoded with its own clause, and heard in its own strip of the picture."""

import dataclasses

import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host.apart import UNEVEN, heard, listening
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.conditioning import CLAUSES, PLACES
from clora_pack.nodes.host.model import places_of, unet_of
from clora_pack.nodes.host.view import base_beneath, view
from torch import Tensor

from .models import Models, random_museum, small_models
from .small_transformers import small_transformer
from .test_gates import encoded, gated, sampled

BOTH = "a photo of <one> in red and (<two>:1.2) in blue, at night"
CLAUSE_ONE, CLAUSE_TWO = "a photo of <one> in red and, at night", "a photo of (<two>:1.2) in blue, at night"


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def models(request: pytest.FixtureRequest) -> Models:
    return small_models(request.param)


def museum_over(models: Models) -> Museum:
    return random_museum(HostBase(*models), "<one>", "<two>", "<style>", size=0.3)


def first_attention(model, positive: list, negative: list) -> Tensor:
    """What the first cross-attention returns for the prompt in the first step, (places, width)."""
    path = next(iter(places_of(model).values())).module.rpartition(".")[0]
    outputs: list[Tensor] = []
    handle = unet_of(model).get_submodule(path).register_forward_hook(lambda _, __, output: outputs.append(output))
    sampled(model, positive, negative, steps=1)
    handle.remove()
    return outputs[0][-1]  # ComfyUI puts the prompt behind the empty one


def test_each_word_is_encoded_with_its_own_clause(models: Models):
    model, clip, _ = models
    speaking, apart = (view(model, clip, museum_over(models), keep_apart=on)[1] for on in (False, True))
    ((states, extra),) = encoded(apart, BOTH)
    alone = torch.cat([encoded(speaking, text)[0][0] for text in (CLAUSE_ONE, CLAUSE_TWO)], dim=1)
    assert torch.allclose(states, alone, atol=1e-5)
    assert extra[CLAUSES].tolist() == [[1] * 77 + [2] * 77]
    assert {word: mask[0].nonzero().tolist() for word, mask in extra[PLACES].items()} == {
        "<one>": [[4]],
        "<two>": [[81]],
    }
    assert torch.equal(extra["pooled_output"], encoded(speaking, BOTH)[0][1]["pooled_output"])
    long = encoded(apart, "a photo of <one> " + "red " * 90 + "and <two>")[0][1][CLAUSES]
    assert long.tolist() == [[1] * 154 + [2] * 77]


@pytest.mark.parametrize(("models", "word_gated"), [("sd15", True), ("sdxl", False)], indirect=["models"])
def test_each_strip_hears_its_own_clause_only(models: Models, word_gated: bool):
    model, clip, _ = models
    museum = gated(museum_over(models)) if word_gated else museum_over(models)
    shown, apart = view(model, clip, museum, keep_apart=True)
    negative = encoded(apart, "")
    prompts = [encoded(apart, text)[0] for text in (CLAUSE_ONE, CLAUSE_TWO, BOTH)]
    pooled = {"pooled_output": prompts[-1][1]["pooled_output"]}  # SDXL's network reads that of the whole prompt
    one, two, both = (first_attention(shown, [[states, extra | pooled]], negative) for states, extra in prompts)
    side = int(len(both) ** 0.5)
    left = torch.arange(len(both)) % side < side / 2
    assert (one - two).abs().max() > 1e-3, "the clauses differ"
    assert torch.allclose(both, torch.where(left[:, None], one, two), atol=1e-4)


@pytest.mark.parametrize("models", ["sd15"], indirect=True)
def test_one_word_and_styles_are_left_alone(models: Models):
    model, clip, _ = models
    museum = museum_over(models)
    *others, style = museum.exhibits
    museum = dataclasses.replace(museum, exhibits=(*others, dataclasses.replace(style, kind="style")))
    for text in ("a photo of a cat", "<two> and <two>", "<one> in <style> style"):
        pictures = []
        for keep_apart in (False, True):
            shown, speaking = view(model, clip, museum, keep_apart=keep_apart)
            pictures.append(sampled(shown, encoded(speaking, text), encoded(speaking, "")))
        assert torch.equal(*pictures), text


@pytest.mark.parametrize("models", ["sd15"], indirect=True)
def test_it_can_be_turned_on_and_off(models: Models):
    model, clip, _ = models
    museum = museum_over(models)
    plain, speaking = view(model, clip, museum)
    shown, apart = view(plain, speaking, museum, keep_apart=True)
    assert view(shown, apart, museum, keep_apart=True)[0] is shown
    again, words = view(shown, apart, museum)
    expected = sampled(plain, encoded(speaking, BOTH), encoded(speaking, ""))
    assert torch.equal(sampled(again, encoded(words, BOTH), encoded(words, "")), expected)
    assert not torch.equal(sampled(shown, encoded(apart, BOTH), encoded(apart, "")), expected)
    base, without = base_beneath(shown, apart)
    assert base.object_patches == model.object_patches  # some hosts patch models themselves
    assert without.patcher.object_patches == clip.patcher.object_patches


@pytest.mark.parametrize(("height", "width"), [(3, 7), (5, 4)])
def test_strips_are_equal_and_lie_along_the_longer_side(height: int, width: int):
    clauses = torch.tensor([[0, 1, 1, 2, 3], [0, 0, 0, 0, 0], [1, 2, 0, 0, 0]])
    expected = torch.zeros(3, height, width, 5, dtype=torch.bool)
    for row, count in enumerate((3, 0, 2)):
        for y in range(height):
            for x in range(width):
                share = x / width if width >= height else y / height
                for token, clause in enumerate(clauses[row].tolist()):
                    expected[row, y, x, token] = clause == 0 or (clause - 1) / count <= share < clause / count
    assert torch.equal(heard(clauses, height, width), expected.flatten(1, 2))


def test_a_layer_that_strips_do_not_fit_is_reported(monkeypatch: pytest.MonkeyPatch):
    """As after a node that merges places of the picture."""
    said: list[str] = []
    monkeypatch.setattr("clora_pack.nodes.host.apart.warn", said.append)
    attention, latents, clauses = torch.nn.Identity(), torch.zeros(1, 4, 8, 8), torch.tensor([[1, 2]])
    attention.forward = lambda x, mask=None: mask
    with listening([attention], clauses, latents):
        assert attention(torch.zeros(1, 64, 2)).shape == (1, 64, 2)
    assert said == []
    with listening([attention], clauses, latents):
        assert attention(torch.zeros(1, 40, 2)) is None
    assert said == [UNEVEN]


def test_other_families_are_refused():
    models = small_transformer("flux")
    with pytest.raises(BaseModelError, match="keep_apart does not work with"):
        view(*models[:2], random_museum(HostBase(*models), "<one>"), keep_apart=True)
