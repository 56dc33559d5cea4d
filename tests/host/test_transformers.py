"""Diffusion transformers in the real host: learning, showing, stock loaders, and what preservation protects."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError, LearningError, RecipeError
from clora_pack.clora_core.learning.fitting import gated_by_default
from clora_pack.clora_core.learning.learn import Progress, learn
from clora_pack.clora_core.learning.lesson import Lesson
from clora_pack.clora_core.learning.start import start_vectors
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.method.regularizers import ContextPreservation
from clora_pack.clora_core.model.attach import attached
from clora_pack.clora_core.model.concept import Concept, ConceptToken
from clora_pack.clora_core.model.low_rank import LowRank, Sketch, mean_square
from clora_pack.clora_core.model.moments import preserved_moments
from clora_pack.clora_core.museum.file import (
    export,
    imported,
    load_museum,
    read_embedding,
    read_lora,
    save_museum,
)
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.model import family_of
from clora_pack.nodes.host.view import view
from torch import Tensor

import nodes as stock_nodes

from .models import INTERRUPTED, Models, ordinary, pictures, random_museum
from .small_transformers import NETWORKS, small_transformer

WORD = "<one>"
PROMPT = f"a photo of {WORD} in the snow"


@pytest.fixture(scope="module", params=list(NETWORKS))
def models(request: pytest.FixtureRequest) -> Iterator[Models]:
    with torch.inference_mode():
        yield small_transformer(request.param)


@pytest.fixture
def ordinary_models(models: Models) -> Models:
    """Of families whose museums are ordinary LoRAs."""
    if family_of(models[0]).reads == "shared":
        pytest.skip("only deltas at a word can be learned here")
    return models


def base_of(models: Models) -> HostBase:
    """Over these models, with a few everyday captions: moments of all of them take most of a test's time."""
    base = HostBase(*models)
    base.family = dataclasses.replace(base.family, captions=base.family.captions[:8])
    return base


def pictured(base: HostBase) -> Concept:
    """Pictures of the smallest size that the model takes."""
    return Concept(WORD, pictures(4, side=8 * base.family.least_side))


def recipe(**numbers: object) -> Recipe:
    quick = {"rank": 2, "steps": 6, "batch_size": 2, "learning_rate": 2e-2, "token_learning_rate": 2e-2}
    ordinary = numbers.get("applied", "everywhere") == "everywhere"
    own = {"regularizers": (ContextPreservation(1.0),), "word_fit": 1.0} if ordinary else {}
    return Recipe("preservation", **{**own, **quick, **numbers})


def weights(models: Models) -> dict[str, Tensor]:
    parts = {"model": models[0].model, "text": models[1].cond_stage_model}
    return {f"{part}.{name}": value.clone() for part, m in parts.items() for name, value in m.state_dict().items()}


def side(base: HostBase) -> tuple[int, int]:
    """Of small latents."""
    return (base.family.least_side, base.family.least_side)


def sampled(model, clip, prompt: str) -> Tensor:
    """The latent of a stock KSampler in two steps."""
    cond = stock_nodes.CLIPTextEncode().encode(clip, prompt)[0]
    empty = stock_nodes.CLIPTextEncode().encode(clip, "blurry")[0]
    shape = model.model.latent_format
    least = family_of(model).least_side
    size = (1, shape.latent_channels, *((1,) if shape.latent_dimensions == 3 else ()), least, least)
    latent = {"samples": torch.zeros(size)}
    comfy.model_management.unload_all_models()  # some hosts leave another clone's patches on the weights
    return stock_nodes.KSampler().sample(model, 3, 2, 2.0, "euler", "simple", cond, empty, latent)[0]["samples"]


def test_several_concepts_cannot_share_what_acts_at_one_word(models: Models):
    base = base_of(models)
    if base.family.reads != "shared":
        pytest.skip("a recipe that acts everywhere can be chosen here")
    pair = [pictured(base), dataclasses.replace(pictured(base), word="<other>")]
    for applied in ("everywhere", "onwards"):
        with ordinary(), pytest.raises(LearningError, match="learn one concept after another"):
            learn(base, Museum(base.fingerprint), pair, recipe(applied=applied))


def test_loss_falls_and_only_the_exhibit_changes(models: Models):
    before, base = weights(models), base_of(models)
    chosen = recipe(steps=12, applied="onwards" if base.family.reads == "shared" else "everywhere")
    concept = pictured(base)
    with ordinary():
        with pytest.raises(INTERRUPTED):
            learn(base, Museum(base.fingerprint), [concept], chosen, report=interrupt)
        (exhibit,) = learn(base, Museum(base.fingerprint), [concept], chosen)
        lesson = Lesson.prepared(base, concept, chosen)
        untrained = lesson.reference_loss(ConceptToken(WORD, start_vectors(base, concept)))
        with attached(base, exhibit.deltas, exhibit.gate):
            trained = lesson.reference_loss(exhibit.token)
    assert trained < untrained
    assert all(delta.up.abs().max() > 0 for delta in exhibit.deltas.values())
    after = weights(models)
    assert all(after[name].equal(value) for name, value in before.items())


def interrupt(progress: Progress) -> None:
    if progress.step == 2:
        raise INTERRUPTED


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_matches_finite_differences(models: Models, checkpointing: bool):
    base = HostBase(*models)
    projection = next(iter(base.slots))
    rng = torch.Generator().manual_seed(5)
    rows, columns = projection.shape
    with ordinary(), base.learning(precision="fp32", checkpointing=checkpointing):
        up, down = torch.randn(rows, 1, generator=rng), torch.randn(1, columns, generator=rng) / columns**0.5
        latents = torch.randn(1, *base.family.latent_shape(*side(base)), generator=rng)
        times = torch.tensor([600])
        vectors = {name: torch.randn(1, 1, size, generator=rng) for name, size in base.family.encoders.items()}

        def loss(scale: Tensor) -> Tensor:
            word = ConceptToken(WORD, {name: scale * own for name, own in vectors.items()})
            with attached(base, {projection: LowRank(up * scale, down)}):
                return base.predict(latents, times, base.encode_prompts([PROMPT], [word])).double().square().mean()

        scale = torch.ones((), requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(scale), scale)
        with torch.no_grad():
            rounding = 4 * torch.finfo(torch.float32).eps * loss(scale).item() / 0.1
            slope = (loss(torch.tensor(1.05)) - loss(torch.tensor(0.95))) / 0.1
    assert gradient.item() == pytest.approx(slope.item(), rel=2e-2, abs=rounding)


def test_batch_of_different_lengths_matches_single_prompts(models: Models):
    base = HostBase(*models)
    latents = torch.randn(3, *base.family.latent_shape(*side(base)), generator=torch.Generator().manual_seed(1))
    times = torch.tensor([100, 500, 900])
    together = base.encode_prompts(["a cat", "a much longer prompt about a dog", "a hat"], ())
    found = base.predict(latents, times, together)
    for row in range(3):
        alone = base.predict(latents[row : row + 1], times[row : row + 1], together[slice(row, row + 1)])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-3, atol=1e-4)


def test_prediction_matches_the_stock_sampler(models: Models):
    """One Euler step of ComfyUI's own sampler from pure noise ends where our prediction says."""
    model, clip, _ = models
    base = HostBase(*models)
    start = torch.randn(1, *base.family.latent_shape(*side(base)), generator=torch.Generator().manual_seed(2))
    sampling = model.get_model_object("model_sampling")
    last = torch.tensor([len(base.schedule.levels) - 1])
    noisy = base.schedule.noised(torch.zeros_like(start), start, last)
    clean = base.schedule.clean(noisy, base.predict(noisy, last, base.encode_prompts(["a cat"], ())), last)
    seen: list[Tensor] = []
    cond = stock_nodes.CLIPTextEncode().encode(clip, "a cat")[0]
    if base.family.name == "flux":
        cond = [[cond[0][0], {**cond[0][1], "guidance": 3.5}]]
    sigmas = torch.tensor([float(sampling.sigma(torch.tensor(999.0))) if base.schedule.prediction != "flow" else 0.0])
    if base.schedule.prediction == "flow":
        sigmas = base_sigma(model, base)
    comfy.sample.sample_custom(
        model,
        start,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.cat([sigmas, torch.zeros(1)]),
        cond,
        cond,
        torch.zeros_like(start),
        callback=lambda step, x0, x, steps: seen.append(x0.clone()),
        disable_pbar=True,
        seed=0,
    )
    assert (seen[0] - clean).norm() < 2e-3 * clean.norm()


def base_sigma(model, base: HostBase) -> Tensor:
    from clora_pack.nodes.host.network import clock

    return clock(model, base.schedule, torch.tensor([len(base.schedule.levels) - 1]))[0].float()


def test_load_lora_shows_the_museum(ordinary_models: Models, tmp_path: Path):
    model, clip, _ = ordinary_models
    museum = random_museum(HostBase(*ordinary_models), WORD, size=0.5)
    shown, _ = view(model, clip, museum)
    path = tmp_path / "museum.safetensors"
    save_museum(museum, path)
    stock = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 1.0, 1.0)[0]
    ours, theirs, plain = (sampled(each, clip, "a cat") for each in (shown, stock, model))
    assert (ours - plain).norm() > 1e-3 * plain.norm()
    assert (ours - theirs).norm() < 1e-4 * (ours - plain).norm()
    again = load_museum(path)
    assert again.words == museum.words and all(
        a.same_as(b) for a, b in zip(again.exhibits, museum.exhibits, strict=True)
    )
    files = export(museum, tmp_path / "plain").files
    lora, vectors = read_lora(files[0]), read_embedding(files[1])
    back = imported(museum.base, WORD, vectors, lora, known=museum.exhibits[0].deltas)
    for projection, delta in museum.exhibits[0].deltas.items():
        assert torch.equal(back.deltas[projection].dense(), delta.dense())


def test_word_changes_its_prompt_and_gated_deltas_nothing_else(models: Models):
    model, clip, _ = models
    base = base_of(models)
    with ordinary():
        exhibits = learn(base, Museum(base.fingerprint), [pictured(base)], recipe(applied="word", steps=4))
    museum = Museum(base.fingerprint, tuple(exhibits))
    shown, speaking = view(model, clip, museum)
    assert torch.equal(sampled(shown, speaking, "a cat"), sampled(model, clip, "a cat"))
    told = sampled(shown, speaking, PROMPT)
    assert not torch.equal(told, sampled(model, speaking, PROMPT)), "its deltas"
    assert not torch.equal(told, sampled(model, clip, PROMPT)), "and its vectors"


def test_moment_matches_the_inputs_of_the_projections(models: Models):
    """tr(Δ C Δᵀ) against the mean square of Δx over the inputs that a hook records."""
    base = base_of(models)
    with ordinary(), torch.no_grad():
        moments, sizes = preserved_moments(base, (), ())
    for projection, slot in list(base.slots.items())[:4]:
        heard: list[Tensor] = []
        handle = slot.module.register_forward_hook(lambda m, x, y, heard=heard: heard.append(x[0].flatten(0, -2)))
        with ordinary(), torch.no_grad():
            preserved_moments(base, (), ())
        handle.remove()
        x = torch.cat(heard).float()
        rng = torch.Generator().manual_seed(1)
        delta = LowRank(torch.randn(projection.shape[0], 2, generator=rng), torch.randn(2, x.shape[1], generator=rng))
        expected = (x @ delta.down.T @ delta.up.T).square().sum(1).mean()
        if base.family.reads == "function":
            assert not isinstance(moments[projection], Sketch)
            torch.testing.assert_close(mean_square(delta, moments[projection]), expected, rtol=1e-3, atol=0)
            mine = (x @ slot.weight.float().T).square().sum(1).mean()
            bias = slot.module.bias is not None
            assert bias or sizes[projection] == pytest.approx(float(mine), rel=1e-3)
        else:
            assert 0.1 < float(mean_square(delta, moments[projection]) / expected) < 10


@pytest.mark.skipif("z-image" not in NETWORKS, reason="this host has no Z-Image")
def test_shared_keys_and_values_accept_gated_recipes_only():
    base = HostBase(*small_transformer("z-image"))
    with ordinary(), pytest.raises(LearningError, match="Choose word-gated-onwards or word-gated"):
        learn(base, Museum(base.fingerprint), [pictured(base)], recipe())


def test_layer_wise_words_are_refused():
    base = HostBase(*small_transformer("flux"))
    with ordinary(), pytest.raises(RecipeError, match=r"needs a UNet, not FLUX\.1"):
        learn(base, Museum(base.fingerprint), [pictured(base)], recipe(layer_wise=True, word_fit=0.0))


def test_picture_conditioned_model_is_refused(monkeypatch: pytest.MonkeyPatch):
    name, config = NETWORKS["flux"]
    monkeypatch.setitem(NETWORKS, "flux", (name, {**config, "in_channels": 32}))
    base = HostBase(*small_transformer("flux"))
    latents = torch.zeros(1, *base.family.latent_shape(*side(base)))
    with pytest.raises(BaseModelError, match="is conditioned on a picture"):
        base.predict(latents, torch.tensor([500]), base.encode_prompts(["a cat"], ()))


@pytest.mark.parametrize("family", [family for family in ("wan", "flux", "anima", "z-image") if family in NETWORKS])
def test_nodes_train_save_and_load(family: str, nodes: dict[str, Any], own_results, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "museums", ([str(tmp_path)], {".safetensors"}))
    model, clip, vae = small_transformer(family)
    least = 8 * family_of(model).least_side
    numbers = {
        "steps": 3,
        "rank": 2,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "forgetting_weight": 1.0,
        "training_seed": 0,
    }
    taught = nodes["CLoRA_ConceptToken"].execute(WORD, "object", "a photo of {word}", 0, "", 0).args[0]
    shown, speaking, museum, loss, preview = (
        nodes["CLoRA_TrainStep"]
        .execute(model=model, clip=clip, vae=vae, images=torch.rand(3, least, least, 3), concept=taught, **numbers)
        .args
    )
    assert all(bool(exhibit.gate) == gated_by_default(family_of(model)) for exhibit in museum.exhibits)
    assert len(loss["loss"]) == 3 and preview.shape[1:] == (least, least, 3) and preview.isfinite().all()
    nodes["CLoRA_SaveMuseum"].execute(museum, "mine", False)
    loaded, words, again = nodes["CLoRA_LoadMuseum"].execute(model, clip, "mine.museum.safetensors", "", 1.0).args
    assert again.words == (WORD,)
    ours = sampled(shown, speaking, PROMPT)
    torch.testing.assert_close(sampled(loaded, words, PROMPT), ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
