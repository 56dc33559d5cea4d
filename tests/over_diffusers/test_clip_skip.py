"""CLIP skip: the layer that is read, learned with, kept in the museum, and compared."""

from pathlib import Path

import pytest
import torch

from clora_core.errors import BaseModelError
from clora_core.learning.key import learning_key
from clora_core.learning.learn import Learning
from clora_core.model.concept import ConceptToken, skip_note
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase, open_base, starter_parts
from tests.saved_models import same, saved_model
from tests.small import short, small_concept, small_starter

PROMPTS = ["a photo", "as many letters fit"]


@torch.no_grad()
@pytest.mark.parametrize(("family", "usual"), [("sd15", 1), ("sd2", 2)])
def test_clip_skip_equals_an_encoder_with_fewer_layers(family: str, usual: int) -> None:
    folder = saved_model(family).folder
    plain, base, shorter = open_base(folder), open_base(folder, clip_skip=usual + 1), open_base(folder)
    assert (plain.clip_skip, base.clip_skip) == (usual, usual + 1)
    layers = shorter.encoders[0].model.encoder.layers
    shorter.encoders[0].model.encoder.layers = layers[:-1]
    same(base.encode_prompts(PROMPTS, []).states, shorter.encode_prompts(PROMPTS, []).states)
    same(
        open_base(folder, clip_skip=usual).encode_prompts(PROMPTS, []).states, plain.encode_prompts(PROMPTS, []).states
    )


@torch.no_grad()
def test_sdxl_may_read_the_last_layer() -> None:
    base = open_base(saved_model("sdxl").folder, clip_skip=1)
    expected = []
    for encoder in base.encoders:
        ids = encoder.tokenizer(PROMPTS, padding="max_length", max_length=encoder.length, return_tensors="pt").input_ids
        expected.append(encoder.model(ids, output_hidden_states=True).hidden_states[-1])
    same(base.encode_prompts(PROMPTS, []).states, torch.cat(expected, dim=-1))


@pytest.mark.parametrize(("family", "skip"), [("sd15", 0), ("sd15", 3), ("sdxl", 3)])
def test_missing_layer_is_refused(family: str, skip: int) -> None:
    with pytest.raises(BaseModelError, match=rf"CLIP skip is {skip}, but .* it can be 1 to 2"):
        open_base(saved_model(family).folder, clip_skip=skip)


def test_clip_skip_is_used_in_training_and_stored(tmp_path: Path) -> None:
    bases = [DiffusersBase(starter_parts(small_starter()), clip_skip=skip) for skip in (None, 1, 2)]
    museum, concept = Museum(bases[0].fingerprint), small_concept()
    keys = [learning_key(base, museum, [concept], short()) for base in bases]
    assert keys[0] == keys[1] != keys[2]
    exhibits = [Learning(base, museum, (concept,), short(steps=2)).run()[0] for base in bases[1:]]
    assert not exhibits[0].same_as(exhibits[1])
    loaded = load_museum(save_museum(museum.with_exhibits(exhibits[1]), tmp_path / "a.safetensors"))
    assert loaded.tokens[0].clip_skip == exhibits[1].token.clip_skip == loaded.exhibits[0].facts["clip skip"] == 2
    after = Learning(bases[0], loaded, (small_concept("<two>"),), short())
    assert after.notes == (skip_note(loaded.tokens, 1),)
    assert "<one> (CLIP skip 2)" in after.notes[0] and "--clip-skip 2" in after.notes[0]
    assert not Learning(bases[2], loaded, (small_concept("<two>"),), short()).notes


def test_museum_without_clip_skip_is_not_compared() -> None:
    assert not skip_note([ConceptToken("<a>", {"clip_l": torch.zeros(1, 1, 4)})], 2)
