"""A base over diffusers encodes, predicts and learns like its parts, and does not change."""

import pytest
import torch
from torch import Tensor

from clora_core.errors import BaseModelError, ConceptError
from clora_core.model.attach import attached
from clora_core.model.base import Conditioning
from clora_core.model.low_rank import LowRank
from clora_core.over_diffusers.base import DiffusersBase, starter_parts
from clora_core.starter.layout import TOKENS
from clora_core.starter.model import build_starter
from tests.families import FAMILIES, LENGTH
from tests.saved_models import Saved, opened, prediction_of, random, same, saved_model, word_like


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
def test_pictures_are_encoded_as_the_posterior_mean(saved: Saved, base: DiffusersBase) -> None:
    pictures = random(5, 3, 32, 32).clamp(-1, 1)
    mean = saved.pipeline.vae.encode(pictures).latent_dist.mean
    latents = base.encode_pictures(pictures)
    same(latents, mean * saved.pipeline.vae.config["scaling_factor"])
    assert latents.equal(base.encode_pictures(pictures))
    painted = saved.pipeline.vae.decode(mean).sample
    rounding = 1e-5 * painted.abs().max().item()  # untrained decoders paint far beyond the range that is shown
    torch.testing.assert_close(base.decode_latents(latents), painted.clamp(-1, 1), rtol=0, atol=rounding)


@torch.no_grad()
def test_predictions_match_the_unet(saved: Saved, base: DiffusersBase) -> None:
    noisy, times = random(2, 4, 8, 16), torch.tensor([3, 900])
    conditioning = base.encode_prompts(["a", "b"], [])
    added = None
    if saved.family == "sdxl":
        size = (64, 128)
        ids = saved.pipeline._get_add_time_ids(size, (0, 0), size, torch.float32, text_encoder_projection_dim=1280)
        added = {"text_embeds": conditioning.pooled, "time_ids": ids.repeat(2, 1)}
    expected = saved.pipeline.unet(noisy, times, conditioning.states, added_cond_kwargs=added).sample
    same(base.predict(noisy, times, conditioning), expected)


def test_pictures_that_do_not_fit_are_refused(starter: DiffusersBase) -> None:
    with pytest.raises(BaseModelError, match=r"60×64 pixels .* multiples of 8"):
        starter.encode_pictures(torch.zeros(1, 3, 60, 64))


def test_sdxl_needs_pooled_vectors(saved: Saved, base: DiffusersBase) -> None:
    if saved.family == "sdxl":
        with pytest.raises(BaseModelError, match="pooled"):
            prediction_of(base, Conditioning(torch.zeros(1, LENGTH, 2048)))


def flags(base: DiffusersBase) -> list[bool]:
    models = (base.unet, base.vae, *(encoder.model for encoder in base.encoders))
    found = [parameter.requires_grad for model in models for parameter in model.parameters()]
    found += [module.training for model in models for module in model.modules()]
    return [*found, base.unet.is_gradient_checkpointing]


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_learning_restores_everything(starter: DiffusersBase, fails: bool) -> None:
    conditioning = starter.encode_prompts(["a photo"], [])
    expected = prediction_of(starter, conditioning)
    starter.unet.conv_in.requires_grad_(True)
    starter.unet.up_blocks.train()
    before = flags(starter)
    try:
        with starter.learning(precision="bf16", checkpointing=True):
            assert not any(flags(starter)[:-1])
            assert starter.unet.is_gradient_checkpointing
            assert not prediction_of(starter, conditioning).equal(expected)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert flags(starter) == before
    starter.unet.eval().requires_grad_(False)
    assert prediction_of(starter, conditioning).equal(expected)


def test_checkpointing_computes_the_same_gradients_with_deltas_attached(base: DiffusersBase) -> None:
    rank = 2
    results = []
    for checkpointing in (False, True):
        token = word_like(base, "ab")
        deltas = {
            projection: LowRank(
                random(projection.shape[0], rank).mul(0.01).requires_grad_(),
                random(rank, projection.shape[1]).mul(0.1).requires_grad_(),
            )
            for projection in base.slots
        }
        past = {projection: random(*projection.shape, seed=3) * 1e-3 for projection in base.slots}
        with base.learning(precision="fp32", checkpointing=checkpointing), attached(base, past), attached(base, deltas):
            prediction_of(base, base.encode_prompts(["a <x>"], [token])).square().mean().backward()
        factors = [factor for delta in deltas.values() for factor in (delta.up, delta.down)]
        results.append([tensor.grad for tensor in (*factors, *token.vectors.values())])
    for one, other in zip(*results, strict=True):
        same(one, other)
        assert one.abs().sum() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_are_float32_in_every_precision(base: DiffusersBase, precision: str) -> None:
    with torch.no_grad():
        conditioning = base.encode_prompts(["a"], [])
        exact = prediction_of(base, conditioning)
        with base.learning(precision=precision, checkpointing=False):  # type: ignore[arg-type]
            found = prediction_of(base, conditioning)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)


def test_half_precision_base_can_be_trained(saved: Saved) -> None:
    base = saved.open_file(dtype=torch.bfloat16)
    token = word_like(base, "ab")
    conditioning = base.encode_prompts(["a <x>"], [token])
    assert conditioning.states.dtype == torch.float32
    with base.learning(precision="bf16", checkpointing=True):
        prediction = prediction_of(base, conditioning)
        prediction.square().mean().backward()
    assert prediction.dtype == torch.float32
    assert all(vectors.grad is not None and vectors.grad.isfinite().all() for vectors in token.vectors.values())


@torch.no_grad()
def test_the_starter_is_a_base(starter: DiffusersBase) -> None:
    assert (starter.resolution_px, starter.latent_shape(64, 64)) == (64, (32, 8, 8))
    assert starter.schedule.prediction == "v_prediction"
    pictures = random(5, 3, 64, 64).clamp(-1, 1)
    latents = starter.encode_pictures(pictures)
    same(latents, starter.vae.encode(pictures).latents)
    assert starter.decode_latents(latents).shape == pictures.shape
    same(starter.encode_prompts(["a red photo"], []).states, _encoded(starter, "a red photo"))


def test_a_word_that_the_starter_does_not_know_is_refused(starter: DiffusersBase) -> None:
    assert starter.word_vectors("red")["clip_l"].shape == (1, 128)
    with pytest.raises(ConceptError, match="clip_l does not know 'zeppelin'"):
        starter.word_vectors("red zeppelin")


def _encoded(starter: DiffusersBase, prompt: str) -> Tensor:
    encoder = starter.encoders[0]
    ids = encoder.tokenizer([prompt], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    return encoder.model(ids).last_hidden_state
