"""The base over ComfyUI: it learns what the base over diffusers learns, whatever the dtype of the weights."""

from dataclasses import replace

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.supported_models
import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError, ConceptError
from clora_pack.clora_core.learning.learn import Progress
from clora_pack.clora_core.method.recipe import recipe_named
from clora_pack.clora_core.model.base import Base, Fingerprint
from clora_pack.clora_core.model.concept import ConceptToken
from clora_pack.clora_core.museum.museum import Exhibit, Museum
from clora_pack.clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import view
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .models import (
    FAMILIES,
    concept,
    denoised,
    learned,
    noisiest,
    ordinary,
    recipe,
    round_to_float8,
    small_models,
    taught,
)


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_learning_gives_the_losses_and_deltas_of_diffusers():
    """As close as diffusers is to itself after every weight is changed by its last bit.

    The two round differently, which has the effect of such changes. Adam moves a number with a smaller gradient than
    that by the gradient's sign, so these numbers are arbitrary. A few projections have many of them, and their
    difference (1e-4 to 0.2) is chance. So nine in ten projections must be as close as rounding allows, and all closer
    than 1, the difference of a projection that was not trained.
    """
    with ordinary():
        theirs, *nudged = open_base("starter"), *(off_by_a_bit(seed) for seed in range(3))
    (ours, losses), (expected, expected_losses) = map(twice_learned, (HostBase(*load_starter()), theirs))
    near, near_losses = zip(*map(twice_learned, nudged), strict=True)
    assert losses[:5] == pytest.approx(expected_losses[:5], rel=1e-5)
    close(losses, expected_losses, 5 * max((each - expected_losses).abs().max().item() for each in near_losses))
    for number, (one, other) in enumerate(zip(ours.exhibits, expected.exhibits, strict=True)):
        close(one.token.vectors["clip_l"], other.token.vectors["clip_l"], 1e-4)
        found, *rounded = (torch.tensor(apart(museum.exhibits[number], other)) for museum in (ours, *near))
        assert found.quantile(0.9) < 5 * max(each.quantile(0.9) for each in rounded) < 0.1
        assert found.max() < 1


def off_by_a_bit(seed: int) -> DiffusersBase:
    """The starter over diffusers with every weight one unit in its last place larger or smaller."""
    base, rng = open_base("starter"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for model in (base.unet, *(encoder.model for encoder in base.encoders)):
            for weight in model.parameters():
                sign = torch.randint(0, 2, weight.shape, generator=rng) * 2 - 1
                weight *= 1 + sign * torch.finfo(torch.float32).eps
    return base


def twice_learned(base: Base) -> tuple[Museum, Tensor]:
    """A museum of two words, and the losses of all steps."""
    museum, first = learned(base, Museum(base.fingerprint), "<one>", steps=5)
    museum, second = learned(base, museum, "<two>", seed=1, steps=8)
    return museum, torch.tensor([*first, *second])


def apart(one: Exhibit, other: Exhibit) -> list[float]:
    """How far the deltas of each projection are from the other's, in proportion to these."""
    pairs = [(delta.dense(), other.deltas[projection].dense()) for projection, delta in one.deltas.items()]
    return [((mine - whole).norm() / whole.norm()).item() for mine, whole in pairs]


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest):
    with torch.inference_mode():
        return small_models(request.param)


def gradients(base: HostBase, *, checkpointing: bool = False) -> dict[str, Tensor]:
    """Of everything that the second step of a learning trains, by name; the first leaves `down` where it is."""
    found: dict[str, Tensor] = {}

    def report(progress: Progress) -> None:
        found.update({name: value.detach().clone() for name, value in progress.trained.parameters().items()})
        if progress.step == 1:
            started.update(found)

    started: dict[str, Tensor] = {}
    with ordinary():
        taught(base, Museum(base.fingerprint), concept(), recipe(steps=2, checkpointing=checkpointing), report=report)
    return {name: value - started[name] for name, value in found.items()}


def test_all_parameters_are_trained_in_every_family(models):
    base = HostBase(*models)
    moved = gradients(base)
    assert len(base.slots) == {"sd15": 18, "sd2": 18, "sdxl": 14}[base.family.name]
    assert len(moved) == 2 * len(base.slots) + len(base.family.encoders)
    for name, value in moved.items():
        assert value.isfinite().all() and value.abs().max() > 0, name
    for name, value in gradients(base, checkpointing=True).items():  # Adam turns rounding of the least into steps
        assert (value - moved[name]).norm() < 1e-3 * moved[name].norm(), name


def test_base_encodes_and_predicts_as_stock_nodes(models):
    model, clip, _ = models
    base = HostBase(*models)
    prompt = "a photo of a cat, in the snow"
    conditioning = base.encode_prompts([prompt], [])
    states, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
    close(conditioning.states, states, 1e-6)
    if conditioning.pooled is not None:
        close(conditioning.pooled, pooled, 1e-6)
    sampling = model.get_model_object("model_sampling")
    sigma, scaled = noisiest(model)
    both = conditioning[torch.tensor([0, 0])]
    raw = base.predict(sampling.calculate_input(sigma, scaled), torch.tensor([999, 999]), both)
    expected = denoised(model, states, pooled)
    close(sampling.calculate_denoised(sigma, raw, scaled), expected, 1e-4)


@pytest.mark.parametrize("clip_skip", [-1, -2])
def test_clip_set_last_layer_chooses_the_layer(clip_skip: int):
    model, clip, vae = small_models("sd15")
    clip = clip.clone()
    clip.clip_layer(clip_skip)
    states = HostBase(model, clip, vae).encode_prompts(["a photo"], []).states
    close(states.cpu(), clip.encode("a photo").cpu(), 1e-6)


def test_scaled_float8_is_trained_as_its_dequantized_weights():
    scaled, plain = small_models("sd15", scaled=True), small_models("sd15")
    round_to_float8(plain[0].model.diffusion_model)
    found = [learned(base, Museum(base.fingerprint), "<one>")[1] for base in (HostBase(*scaled), HostBase(*plain))]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.skipif(not hasattr(comfy.ops, "scaled_fp8_ops"), reason="this ComfyUI's float8 has a backward pass")
def test_float8_matmul_without_backward_is_refused(monkeypatch: pytest.MonkeyPatch):
    base = HostBase(*small_models("sd15", scaled=True))
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda device: True)
    with pytest.raises(BaseModelError, match=r"multiplies in float8 .* no backward pass"):
        learned(base, Museum(base.fingerprint), "<one>")
    assert torch.is_inference_mode_enabled()


def test_float8_is_trained_as_the_same_weights_in_float32():
    """As UNETLoader's weight_dtype fp8_e4m3fn stores a model."""
    coarse, plain = small_models("sd15", torch.float8_e4m3fn, torch.float32), small_models("sd15")
    plain[0].model.load_state_dict({name: value.float() for name, value in coarse[0].model.state_dict().items()})
    found = [
        learned(base, Museum(base.fingerprint), "<one>", steps=2)[1] for base in (HostBase(*coarse), HostBase(*plain))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0][0] != found[0][1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_models_in_coarse_dtypes_can_be_trained(stored: torch.dtype, precision: str):
    base = HostBase(*small_models("sd15", stored, torch.float32))
    with ordinary():
        museum, losses = learned(base, Museum(base.fingerprint), "<one>", precision=precision)
    assert torch.tensor(losses).isfinite().all()
    for delta in museum.exhibits[0].deltas.values():
        assert delta.up.abs().max() > 0 and delta.dense().isfinite().all()


@pytest.mark.parametrize("method", ["preservation", "ewc-lora"])
@pytest.mark.parametrize(
    ("stored", "precision"), [(torch.float16, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")]
)
def test_recipes_that_run_the_model_work_without_casting(stored: torch.dtype, precision: str, method: str):
    """As on GPUs, where nothing is cast. The second concept has an earlier one to preserve."""
    base, named = HostBase(*small_models("sd15", stored)), recipe_named(method)
    quick = recipe(precision=precision, steps=2)
    told = replace(quick, regularizers=named.regularizers, over=named.over, layer_wise=named.layer_wise)
    with ordinary():
        museum = taught(base, Museum(base.fingerprint), concept("<one>"), told)
        museum = taught(base, museum, concept("<two>", seed=1), told)
    for exhibit in museum.exhibits:
        assert all(delta.dense().isfinite().all() for delta in exhibit.deltas.values())


def test_attention_without_backward_is_replaced(monkeypatch: pytest.MonkeyPatch):
    base = HostBase(*small_models("sd15"))
    _, expected = learned(base, Museum(base.fingerprint), "<one>")
    kernel = comfy.ldm.modules.attention.attention_pytorch

    @comfy.ldm.modules.attention.wrap_attn
    def sampling_only(q: Tensor, k: Tensor, v: Tensor, *inputs: object, **options: object) -> Tensor:
        return kernel(q.detach(), k.detach(), v.detach(), *inputs, **options)

    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", sampling_only)
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention_masked", sampling_only)
    _, found = learned(base, Museum(base.fingerprint), "<one>")
    assert found == expected


def test_fingerprint_ignores_merged_loras():
    model, clip, vae = load_starter()
    expected = HostBase(model, clip, vae).fingerprint
    patched = model.clone()
    keys = [key for key in model.model_state_dict() if "attn2.to_k.weight" in key]
    patched.add_patches({key: ("diff", (torch.ones(()).expand(model.model_state_dict()[key].shape),)) for key in keys})
    changed = HostBase(patched, clip, vae)
    assert changed.fingerprint == expected
    noisy = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    before = changed.predict(noisy, torch.tensor([500]), changed.encode_prompts(["a photo"], []))
    assert HostBase(model, clip, vae).fingerprint == expected  # while the patches are merged
    assert HostBase(patched, clip, vae).fingerprint == expected
    plain = HostBase(model, clip, vae)
    assert not plain.predict(noisy, torch.tensor([500]), plain.encode_prompts(["a photo"], [])).equal(before)


def test_model_sampling_node_sets_the_schedule():
    model, clip, vae = load_starter()

    class Epsilon(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    chosen = model.clone()
    chosen.add_object_patch("model_sampling", Epsilon(model.model.model_config, zsnr=True))
    schedule = HostBase(chosen, clip, vae).schedule
    assert schedule.prediction == "epsilon"
    assert schedule.levels[-1] < 1e-6 < HostBase(model, clip, vae).schedule.levels[-1]

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    chosen.add_object_patch("model_sampling", Flow(model.model.model_config))
    with pytest.raises(BaseModelError, match="samples with ModelSamplingDiscreteFlow, CONST"):
        HostBase(chosen, clip, vae)


def test_words_of_another_width_are_refused():
    base = HostBase(*load_starter())
    wide = ConceptToken("<one>", {"clip_l": torch.zeros(1, 1, 768)})
    with pytest.raises(ConceptError, match=r"'<one>' has vectors for clip_l \(768 wide\), .* clip_l \(128 wide\)"):
        base.encode_prompts(["a <one>"], [wide])


def test_wrong_text_encoder_and_wrong_vae_are_refused(models):
    model, clip, vae = load_starter()
    with pytest.raises(BaseModelError, match="text encoders"):
        HostBase(model, models[1], vae)
    with pytest.raises(BaseModelError, match="VAE makes latents of 4 channels, but a"):
        HostBase(model, clip, models[2])
    with pytest.raises(BaseModelError, match="need a VAE"):
        HostBase(model, clip).encode_pictures(torch.zeros(1, 3, 64, 64))


LUMINA = {
    **{"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 64, "dim": 48, "n_layers": 1},
    **{"n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 8, 8], "axes_lens": [64, 64, 64]},
}


def test_single_stream_model_is_refused_by_name():
    config = comfy.supported_models.Lumina2(dict(LUMINA))
    config.set_inference_dtype(torch.float32, None)
    cpu, clip = torch.device("cpu"), load_starter()[1]
    model = ModelPatcher(config.get_model({}, device=cpu), cpu, cpu)
    museum = Museum(Fingerprint("sd15", "0" * 64))
    for use in (lambda: HostBase(model, clip), lambda: view(model, clip, museum)):
        with pytest.raises(BaseModelError, match=r"^Lumina2 does not support C-LoRA\. .* share"):
            use()


class Paged(ModelPatcher):
    """Stands in for the patcher that newer ComfyUIs use on NVIDIA's devices; no such device is asked for here."""

    loaded_whole: ModelPatcher | None = None

    def is_dynamic(self) -> bool:
        return True

    def get_non_dynamic_delegate(self) -> ModelPatcher:
        if self.loaded_whole is None:
            raise RuntimeError("cached_patcher_init is not initialized")
        return self.loaded_whole


def paged(patcher: ModelPatcher, whole: ModelPatcher | None) -> ModelPatcher:
    stand_in = Paged(patcher.model, patcher.load_device, patcher.offload_device)
    stand_in.loaded_whole = whole
    return stand_in


def test_paged_weights_are_loaded_whole():
    (model, clip, vae), (whole, whole_clip, _) = load_starter(), load_starter()
    expected = HostBase(whole, whole_clip, vae)
    clip = clip.clone()
    clip.patcher = paged(clip.patcher, whole_clip.patcher)
    base = HostBase(paged(model, whole), clip, vae)
    assert base.model is whole and base.clip.cond_stage_model is whole_clip.cond_stage_model
    _, losses = learned(base, Museum(base.fingerprint), "<one>")
    assert losses == learned(expected, Museum(expected.fingerprint), "<one>")[1]
    with pytest.raises(BaseModelError, match=r"BaseModel cannot be kept in memory as a whole .*--disable-dynamic-vram"):
        learned(HostBase(paged(model, None), clip, vae), Museum(base.fingerprint), "<one>")


def test_paged_weights_are_trained_in_the_dtype_they_are_paged_in():
    """On NVIDIA's cards ComfyUI leaves linear layers in their file's float32 and pages them in as float16."""
    (model, clip, vae), (whole, _, _) = (small_models("sd15", torch.float16) for _ in range(2))
    for module in whole.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.float()
            module.weight_comfy_model_dtype = module.bias_comfy_model_dtype = torch.float16
    base = HostBase(paged(model, whole), clip, vae)
    museum, losses = learned(base, Museum(base.fingerprint), "<one>")
    assert losses == learned(HostBase(model, clip, vae), Museum(base.fingerprint), "<one>")[1]
    states = base.encode_prompts(["a <one>"], museum.tokens)
    assert base.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), states).isfinite().all()
