"""The built-in model in ComfyUI's classes is the built-in model in diffusers' classes."""

import pytest
import torch
from clora_pack.clora_core.model.sampling import Sampling, sample
from clora_pack.clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter

from .models import ordinary, pictures

PROMPTS = ["a photo of a woman with red hair", "", "a robot, wearing a hat! zeppelin", "A Photo OF a CAT"]


@pytest.fixture(scope="module")
def theirs() -> DiffusersBase:
    with ordinary():
        return open_base("starter")


@pytest.fixture(scope="module")
def ours() -> HostBase:
    with torch.inference_mode():
        return HostBase(*load_starter())


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_fingerprints_are_equal(ours: HostBase, theirs: DiffusersBase):
    assert ours.fingerprint == theirs.fingerprint
    assert list(ours.slots) == list(theirs.slots)
    assert ours.schedule.prediction == theirs.schedule.prediction
    close(ours.schedule.levels, theirs.schedule.levels, 1e-6)


def test_pictures_are_encoded_and_decoded_equally(ours: HostBase, theirs: DiffusersBase):
    shown = pictures(5)
    latents = theirs.encode_pictures(shown)
    close(ours.encode_pictures(shown), latents)
    close(ours.decode_latents(latents), theirs.decode_latents(latents))
    assert ours.latent_shape(64, 128) == theirs.latent_shape(64, 128)
    assert ours.resolution_px == theirs.resolution_px


def test_prompts_are_encoded_equally(ours: HostBase, theirs: DiffusersBase):
    close(ours.encode_prompts(PROMPTS, []).states, theirs.encode_prompts(PROMPTS, []).states)
    long = " ".join(["red hair"] * 30)
    close(ours.encode_prompts([long], []).states, theirs.encode_prompts([long], []).states)


def test_predictions_are_equal(ours: HostBase, theirs: DiffusersBase):
    noisy = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([3, 250, 700, 999])
    expected = theirs.predict(noisy, times, theirs.encode_prompts(PROMPTS, []))
    close(ours.predict(noisy, times, ours.encode_prompts(PROMPTS, [])), expected)


def test_vocabularies_are_equal(ours: HostBase, theirs: DiffusersBase):
    assert ours.vocabulary()["clip_l"].equal(theirs.vocabulary()["clip_l"])
    assert ours.word_vectors("red")["clip_l"].equal(theirs.word_vectors("red")["clip_l"])
    with pytest.raises(Exception, match="clip_l does not know 'zeppelin'"):
        ours.word_vectors("red zeppelin")


def test_samples_are_equal(ours: HostBase, theirs: DiffusersBase):
    shown = [sample(base, PROMPTS[:2], sampling=Sampling(steps=4), latent_shape=(32, 8, 8)) for base in (ours, theirs)]
    close(*shown, 1e-3)
