"""A model that views a museum predicts what the engine predicts with the museum attached, however it is stored."""

import dataclasses
import gc
import weakref
from typing import Any

import comfy.model_management
import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError, MuseumError
from clora_pack.clora_core.model.attach import Reading, attached
from clora_pack.clora_core.model.base import Fingerprint
from clora_pack.clora_core.model.low_rank import LowRank
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.clora_core.over_diffusers.base import open_base
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import base_beneath, note_about, same_museum, view, viewed
from clora_pack.nodes.host.words import known_words
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .models import Models, denoised, fill, learned, noisiest, ordinary, random_museum, small_models
from .small_transformers import small_transformer

STORED = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, "scaled"]
STRENGTHS = {"<one>": 0.5, "<two>": -1.5}


def states_of(base: HostBase) -> Tensor:
    return base.encode_prompts(["a photo of a cat"], []).states.clone()


def stored(dtype: torch.dtype | str) -> Models:
    if dtype == "scaled":
        return small_models("sd15", scaled=True)
    return small_models("sd15", dtype, None if dtype == torch.float32 else torch.float32)


@pytest.mark.usefixtures("clones_stay_apart")
@pytest.mark.parametrize("size", [0.3, 1e-3], ids=["large", "small"])
@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_view_predicts_as_the_engine(dtype: torch.dtype | str, size: float):
    model, clip, vae = stored(dtype)
    base = HostBase(model, clip, vae)
    museum = random_museum(base, "<one>", "<two>", "<three>", size=size)
    states = states_of(base)
    before = denoised(model, states)
    with attached(base, museum.deltas(STRENGTHS)), Reading.of(base):
        expected = denoised(base.model, states)
    shown, _ = view(model, clip, museum, STRENGTHS)
    found = denoised(shown, states)
    moved = (expected - before).norm()
    assert moved > 0
    # merged into float16, a delta of a thousandth of its weight is rounded by a fifth of itself (2⁻¹¹ of the weight)
    assert (found - expected).norm() < {torch.float16: 0.3 if size < 0.1 else 1e-2}.get(dtype, 1e-3) * moved
    assert denoised(model, states).equal(before)
    assert denoised(shown.clone(), states).equal(found)


def test_view_of_the_starter_matches_diffusers():
    with ordinary():
        theirs = open_base("starter")
    model, clip, vae = load_starter()
    ours = HostBase(model, clip, vae)
    museum = random_museum(ours, "<one>", "<two>", size=0.3)
    shown, speaking = view(model, clip, museum)
    states = speaking.encode_from_tokens(speaking.tokenize("a photo of <one> and <two>"))
    conditioning = theirs.encode_prompts(["a photo of <one> and <two>"] * 2, museum.tokens)
    torch.testing.assert_close(states, conditioning.states[:1], rtol=0, atol=1e-5)
    sampling = model.get_model_object("model_sampling")
    sigma, scaled = noisiest(model)
    with attached(theirs, museum.deltas()):
        velocity = theirs.predict(sampling.calculate_input(sigma, scaled), torch.tensor([999, 999]), conditioning)
    expected = sampling.calculate_denoised(sigma, velocity, scaled)
    torch.testing.assert_close(denoised(shown, states), expected, rtol=0, atol=1e-4)


class Operations(TorchDispatchMode):
    """Notes what torch computes, and of what size."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.done.append((str(func), *(str((tuple(a.shape), a.dtype)) for a in args if isinstance(a, Tensor))))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_merged_museum_adds_no_computation(dtype: torch.dtype):
    model, clip, vae = stored(dtype)
    base = HostBase(model, clip, vae)
    shown, _ = view(model, clip, random_museum(base, "<one>", "<two>", "<three>", size=0.01))
    states, found = states_of(base), []
    for each in (model, shown):
        denoised(each, states)  # which loads it
        with Operations() as operations:
            denoised(each, states)
        found.append(operations.done)
    assert len(found[0]) > 100 and found[1] == found[0]


@pytest.mark.usefixtures("clones_stay_apart")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_partially_loaded_model_shows_the_whole_museum(dtype: torch.dtype):
    model, clip, vae = stored(dtype)
    base = HostBase(model, clip, vae)
    shown, _ = view(model, clip, random_museum(base, "<one>", size=0.3))
    states = states_of(base)
    whole = denoised(shown, states)
    comfy.model_management.unload_all_models()
    shown.patch_model(shown.load_device, lowvram_model_memory=1000)
    assert shown.loaded_size() < shown.model_size()
    options = {"wrappers": shown.wrappers}
    sigma, scaled, states = (each.to(shown.load_device) for each in (*noisiest(shown), states.expand(2, -1, -1)))
    found = shown.model.apply_model(scaled, sigma.expand(2), c_crossattn=states, transformer_options=options)
    shown.detach()
    torch.testing.assert_close(found.cpu(), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_view_is_recognized_extended_and_removed(dtype: torch.dtype):
    model, clip, vae = stored(dtype)
    base = HostBase(model, clip, vae)
    states, two = states_of(base), random_museum(base, "<one>", "<two>", size=0.3)
    one = two.only(["<one>"])
    before, expected = denoised(model, states), denoised(view(model, clip, two)[0], states)
    assert viewed(model) is None
    shown, speaking = view(model, clip, one)
    assert viewed(shown) is one and viewed(shown.clone()) is one
    assert view(shown, speaking, one)[0] is shown
    again, more = view(shown.clone(), speaking, two)
    assert denoised(again, states).equal(expected)
    assert set(known_words(more)) == {"<one>", "<two>"}
    beneath, plain = base_beneath(again, more)
    assert viewed(beneath) is None and known_words(plain) == {}
    assert denoised(beneath, states).equal(before)
    assert denoised(model, states).equal(before)


def test_model_that_shows_another_museum_is_refused():
    model, clip, vae = load_starter()
    base = HostBase(model, clip, vae)
    shown, speaking = view(model, clip, random_museum(base, "<one>"))
    other = random_museum(base, "<two>")
    with pytest.raises(BaseModelError, match=r"shows a museum \(<one>\) other than the connected one \(<two>\)"):
        view(shown, speaking, other)
    with pytest.raises(BaseModelError, match="shows a museum"):
        base_beneath(shown, speaking, other)


def test_patches_of_other_nodes_stay():
    model, clip, vae = load_starter()
    base = HostBase(model, clip, vae)
    states, museum = states_of(base), random_museum(base, "<one>", size=0.3)
    key = next(key for key in model.model_state_dict() if "attn2.to_v.weight" in key)
    change = {key: ("diff", (0.1 * torch.ones_like(model.model_state_dict()[key]),))}
    patched = model.clone()
    patched.add_patches(change)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", lambda forward, *a, **k: forward(*a, **k) * 1.1)
    expected, both = denoised(patched, states), denoised(view(patched, clip, museum)[0], states)
    shown, speaking = view(model, clip, museum)
    shown.add_patches(change)
    shown.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", lambda forward, *a, **k: forward(*a, **k) * 1.1)
    torch.testing.assert_close(denoised(shown, states), both, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoised(base_beneath(shown, speaking)[0], states), expected, rtol=0, atol=1e-5)


def test_learning_continues_over_a_viewing_model():
    model, clip, vae = load_starter()
    base = HostBase(model, clip, vae)
    museum, _ = learned(base, Museum(base.fingerprint), "<one>")
    expected, losses = learned(base, museum, "<two>")
    shown, speaking = view(model, clip, museum)
    denoised(shown, states_of(base))  # merged now
    over = HostBase(shown, speaking, vae)
    assert over.fingerprint == base.fingerprint
    found, again = learned(over, museum, "<two>")
    assert again == losses and same_museum(found, expected)


def test_museums_are_compared_by_content():
    base = HostBase(*load_starter())
    museum = random_museum(base, "<one>", "<two>")
    assert same_museum(museum, random_museum(base, "<one>", "<two>"))
    assert not same_museum(museum, museum.only(["<one>"])) and not same_museum(museum.only(["<one>"]), museum)
    assert not same_museum(museum, random_museum(base, "<one>", "<two>", size=0.06))
    assert not same_museum(museum, dataclasses.replace(museum, base=Fingerprint("starter", "other")))
    assert same_museum(Museum(base.fingerprint), Museum(base.fingerprint))


def test_weights_paged_in_as_float8_are_not_merged():
    """ComfyUI leaves the file's float16 and rounds what is merged into the page, and with it the museum, to float8."""
    model, clip, vae = stored(torch.float16)
    museum = random_museum(HostBase(model, clip, vae), "<one>")
    assert view(model, clip, museum)[0].patches
    for module in model.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            module.weight_comfy_model_dtype = torch.float8_e4m3fn
    shown, _ = view(model, clip, museum)
    assert not shown.patches and shown.wrappers


@pytest.mark.parametrize("family", ["sd15", "cosmos-predict2", "flux"])
def test_museum_changes_a_fine_tune_as_it_changes_its_base(family: str):
    """Every projection of the fine-tune gets the same change, and the node reports the other checkpoint."""
    made = small_models if family == "sd15" else small_transformer
    base_models, tuned_models = made(family), made(family)
    fill(tuned_models[0].model.diffusion_model, seed=7)
    museum = random_museum(HostBase(*base_models), "<one>")
    assert "another checkpoint" in note_about(tuned_models[0], museum) and note_about(base_models[0], museum) == ""
    shown, _ = view(tuned_models[0], tuned_models[1], museum)
    assert known_words(view(*tuned_models[:2], museum)[1]).keys() == {"<one>"}
    expected, _ = view(base_models[0], base_models[1], museum)
    assert shown.patches.keys() == expected.patches.keys() != set()
    for key, patches in expected.patches.items():
        for (_, here, *_), (_, there, *_) in zip(shown.patches[key], patches, strict=True):
            assert all(map(torch.equal, here.weights[:2], there.weights[:2]))


def test_museum_that_does_not_fit_is_refused():
    model, clip, vae = load_starter()
    base = HostBase(model, clip, vae)
    museum = random_museum(base, "<one>")
    with pytest.raises(BaseModelError, match="of the family 'sd15', but the loaded model is of the family 'starter'"):
        view(model, clip, dataclasses.replace(museum, base=Fingerprint("sd15", "4a1c0000")))
    exhibit = museum.exhibits[0]
    projection, delta = next(iter(exhibit.deltas.items()))

    def with_delta(deltas: dict) -> Museum:
        return dataclasses.replace(museum, exhibits=(dataclasses.replace(exhibit, deltas=deltas),))

    narrow = LowRank(delta.up, delta.down[:, :-1])
    with pytest.raises(MuseumError, match=rf"delta of '{projection.path}' has shape"):
        view(model, clip, with_delta({**exhibit.deltas, projection: narrow}))
    for changed in (
        dataclasses.replace(projection, path="down_blocks.9.attentions.0.transformer_blocks.0.attn2.to_k"),
        dataclasses.replace(projection, shape=(1, 2)),
    ):
        with pytest.raises(BaseModelError, match="which the loaded model does not have"):
            view(model, clip, with_delta({**exhibit.deltas, changed: delta}))
    with pytest.raises(MuseumError, match="There is no '<two>'"):
        view(model, clip, museum, {"<two>": 1.0})
    assert viewed(model) is None and not model.patches


def test_museum_can_be_viewed_on_a_float8_copy_of_its_base():
    museum = random_museum(HostBase(*stored(torch.float32)), "<one>", size=0.3)
    model, clip, _ = stored(torch.float8_e4m3fn)
    shown, _ = view(model, clip, museum)
    states = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(3))
    assert not denoised(shown, states).equal(denoised(model, states))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_view_is_freed_after_use(dtype: torch.dtype):
    model, clip, vae = stored(dtype)
    base = HostBase(model, clip, vae)
    shown, _ = view(model, clip, random_museum(base, "<one>"))
    denoised(shown, states_of(base))
    gc.disable()
    try:
        gone = weakref.ref(shown)
        del shown
        assert gone() is None
    finally:
        gc.enable()
    hooks = [hook for module in model.model.modules() for hook in module._forward_hooks]
    assert not hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_chain_of_views_holds_every_exhibit_once(dtype: torch.dtype):
    """Their sums are held only while a model is loaded, whether ComfyUI merges them or they are added."""
    model, clip, vae = stored(dtype)
    museum = random_museum(HostBase(model, clip, vae), "<one>", "<two>", "<three>", "<four>")
    own = sum(factor.nbytes for delta in museum.exhibits[0].deltas.values() for factor in (delta.up, delta.down))
    states = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(3))
    denoised(model, states)
    before = bytes_held()
    half = dict.fromkeys(museum.words, 0.5)
    shown = [view(model, clip, museum.only(museum.words[:count]))[0] for count in range(1, 5)]
    shown.append(view(model, clip, museum, half)[0])
    assert bytes_held() < before + own
    denoised(shown[-1], states)
    assert bytes_held() > before + 3 * own
    patches = [entry[1] for entries in shown[-1].patches.values() for entry in entries]
    assert not any("weights" in vars(patch) for patch in patches), "they are merged"
    comfy.model_management.unload_all_models()
    assert bytes_held() < before + own
    for event in (CallbacksMP.ON_LOAD, CallbacksMP.ON_DETACH):
        assert not base_beneath(shown[-1], clip)[0].get_all_callbacks(event)


def bytes_held() -> int:
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), Tensor) and tensor.device.type == "cpu"
    }
    return sum(storages.values())
