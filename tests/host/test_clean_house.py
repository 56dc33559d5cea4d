"""However training ends, ComfyUI's models are restored."""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from clora_pack.clora_core.learning.learn import Progress
from clora_pack.clora_core.learning.state import load_state, save_state
from clora_pack.clora_core.method.draft import AUTOMATIC, Draft
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.actions.inputs import ConceptInputs
from clora_pack.nodes.actions.teaching import train_step
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import same_museum
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .models import INTERRUPTED, Models, concept, learned, ordinary, pictures, recipe, small_models, taught


def sampled(models: Models) -> Tensor:
    """Latents that the stock sampler makes of a stock prompt."""
    model, clip, _ = models
    conditions = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in ("a photo of a cat", "")]
    channels = model.model.latent_format.latent_channels
    noise = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, 3, 2.0, "euler", "normal", *conditions, empty, seed=1, disable_pbar=True)


def networks(models: Models) -> list[nn.Module]:
    model, clip, vae = models
    return [model.model, clip.cond_stage_model, vae.first_stage_model]


def traces(models: Models) -> dict[str, object]:
    """All that could be left on a module, by the module's name."""
    found: dict[str, object] = {}
    for number, network in enumerate(networks(models)):
        for name, module in network.named_modules():
            hooks = sum(len(value) for key, value in vars(module).items() if key.endswith("_hooks"))
            functions = [len(getattr(module, kind, ())) for kind in ("weight_function", "bias_function")]
            swapped = [key for key in ("forward", "comfy_cast_weights", "_clora") if key in vars(module)]
            asking = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
            found[f"{number}.{name}"] = (module.training, hooks, functions, swapped, asking)
    return found


def bits(models: Models) -> list[bytes]:
    """Of all weights; of the large word tables only the first rows."""
    tensors = [
        tensor[:999] if tensor.ndim else tensor for one in networks(models) for tensor in one.state_dict().values()
    ]
    return [tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors]


def in_part(model: ModelPatcher) -> None:
    """Load it as on a device that has room for little of it."""
    comfy.model_management.unload_all_models()
    model.patch_model(model.load_device, lowvram_model_memory=1000)
    assert model.loaded_size() < model.model_size()


class UnforeseenError(Exception):
    """Something unforeseen."""


def interrupt(progress: Progress) -> None:
    comfy.model_management.interrupt_current_processing()


def fail(progress: Progress) -> None:
    raise UnforeseenError


def run_out() -> None:
    raise torch.OutOfMemoryError("out of memory")


class AtCall:
    """A hook that does something at its n-th call."""

    def __init__(self, call: int, act: Callable[[], object]) -> None:
        self.left, self.act = call, act

    def __call__(self, *inputs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


@pytest.fixture(scope="module", params=["starter", "sdxl", "fp8"])
def models(request: pytest.FixtureRequest) -> Models:
    """One for all tests: they hold learning to leave it as it was."""
    with torch.inference_mode():
        match request.param:
            case "starter":
                return load_starter()
            case "fp8":
                return small_models("sd15", torch.float8_e4m3fn, torch.float32)
            case family:
                return small_models(family)


@pytest.fixture(autouse=True)
def _not_interrupted() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


ENDINGS: dict[str, tuple[int, Callable[[Progress], None], type[BaseException] | None]] = {
    # the step that something happens after, what happens, and what comes out of it
    "ends": (recipe().steps, lambda progress: None, None),
    "interrupted after 1": (1, interrupt, INTERRUPTED),
    "interrupted after 3": (3, interrupt, INTERRUPTED),
    "fails": (2, fail, UnforeseenError),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_learning_restores_the_models_and_cancel_stops_it_at_once(models: Models, ending: str):
    last, act, error = ENDINGS[ending]
    before, weights = sampled(models), bits(models)
    left, mode = traces(models), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    base = HostBase(*models)
    steps: list[int] = []

    def report(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == last:
            act(progress)

    with ordinary(), pytest.raises(error) if error else nullcontext():
        taught(base, Museum(base.fingerprint), concept(), recipe(checkpointing=error is not None), report=report)
    assert steps == list(range(1, last + 1))
    assert traces(models) == left
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
    assert bits(models) == weights
    assert sampled(models).equal(before)


@pytest.mark.parametrize("call", [2, 5])
@pytest.mark.parametrize("where", ["diffusion_model.out.2", "diffusion_model.input_blocks.1.0"])
def test_running_out_of_memory_restores_the_models(models: Models, where: str, call: int):
    before = sampled(models)
    left = traces(models)
    base = HostBase(*models)
    handle = models[0].model.get_submodule(where).register_forward_pre_hook(AtCall(call, run_out))
    try:
        with ordinary(), pytest.raises(torch.OutOfMemoryError):
            taught(base, Museum(base.fingerprint), concept(), recipe(steps=8))
    finally:
        handle.remove()
    assert traces(models) == left
    assert sampled(models).equal(before)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "sampled before"])
def test_weights_that_are_inference_tensors_can_be_trained(used: bool):
    models = load_starter()
    if used:
        sampled(models)
    assert all(parameter.is_inference() for parameter in models[0].model.diffusion_model.parameters())
    base = HostBase(*models)
    _, losses = learned(base, Museum(base.fingerprint), "<one>")
    assert len(losses) == recipe().steps


def test_memory_is_freed_however_training_ends():
    base = HostBase(*load_starter())
    held: list[weakref.ref] = []

    def report(progress: Progress) -> None:
        held.extend(weakref.ref(parameter) for parameter in progress.trained.parameters().values())
        if progress.step == 2:
            raise UnforeseenError

    with ordinary():
        with pytest.raises(UnforeseenError):
            taught(base, Museum(base.fingerprint), concept(), recipe(), report=report)
        gc.collect()
    assert held and not any(parameter() is not None for parameter in held)


def test_decoding_pictures_during_training_does_not_change_the_result():
    found = []
    for preview in (False, True):
        base = HostBase(*load_starter())
        losses = []

        def report(progress: Progress, base: HostBase = base, preview: bool = preview, losses: list = losses) -> None:
            losses.append(progress.loss)
            if preview:
                comfy.model_management.unload_all_models()
                assert base.decode_latents(base.encode_pictures(pictures(1))).isfinite().all()

        with ordinary():
            taught(base, Museum(base.fingerprint), concept(), recipe(), report=report)
        found.append(losses)
    assert found[0] == found[1]


def test_models_unloaded_during_training_are_loaded_whole_again():
    """As it does to make room for the VAE when a preview is decoded."""
    found = []
    for make_room in (False, True):
        models = load_starter()
        base, losses = HostBase(*models), []

        def report(progress: Progress, base: HostBase = base, room: bool = make_room, losses: list = losses) -> None:
            losses.append(progress.loss)
            base.decode_latents(torch.zeros(1, *base.latent_shape(64, 64)))
            if room:
                in_part(base.model)

        with ordinary():
            taught(base, Museum(base.fingerprint), concept(), recipe(), report=report)
        found.append(losses)
    assert found[0] == found[1]


def test_partially_loaded_model_is_loaded_whole():
    models = load_starter()
    expected = learned(HostBase(*models), Museum(HostBase(*models).fingerprint), "<one>")[1]
    before = sampled(models)
    model = models[0]
    in_part(model)
    base = HostBase(*models)
    assert learned(base, Museum(base.fingerprint), "<one>")[1] == expected
    assert model.loaded_size() == model.model_size()
    assert sampled(models).equal(before)


def quick_step(
    models: Models, told: Recipe | Draft | None = None, *, preview_every: int = 2
) -> tuple[list[float], Museum]:
    """A Train Step of four steps: its losses, and the museum."""
    images = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    inputs = [ConceptInputs(concept("<one>"), [images])]
    _, _, museum, loss, _ = train_step(*models, inputs, told or recipe(), preview_every=preview_every)
    return loss["loss"], museum


CANCEL, UNET = comfy.model_management.interrupt_current_processing, "diffusion_model"
BESIDE: dict[str, tuple[int, str, int, Callable[[], object], list[str]]] = {
    # model or VAE, its part, the call of it that things happen at, what happens, what is on disk then
    "cancelled while pictures are read": (2, "taesd_encoder", 1, CANCEL, []),
    "cancelled while the untrained model is sampled": (0, UNET, 7, CANCEL, []),
    "cancelled while a preview is sampled": (0, UNET, 27, CANCEL, ["state"]),
    "cancelled while a preview is decoded": (2, "taesd_decoder", 2, CANCEL, ["state"]),
    "cancelled while the result is sampled": (0, UNET, 70, CANCEL, ["kept"]),
    "cancelled while it is compared": (0, UNET, 90, CANCEL, ["kept"]),
    "out of memory in a preview": (0, UNET, 27, run_out, ["state"]),
}


@pytest.mark.parametrize("ending", BESIDE)
def test_train_step_that_fails_outside_training_restores_the_models_and_resumes(own_results: Path, ending: str):
    models = load_starter()
    index, part, call, act, kept = BESIDE[ending]
    before, left = sampled(models), traces(models)
    handle = networks(models)[index].get_submodule(part).register_forward_pre_hook(AtCall(call, act))
    with pytest.raises((INTERRUPTED, torch.OutOfMemoryError)):
        quick_step(models)
    handle.remove()
    states = {"state": own_results, "kept": own_results.with_name("kept")}  # of the whole training, it stays
    assert [name for name, folder in states.items() if list(folder.glob("*.state.safetensors"))] == kept
    assert traces(models) == left
    assert sampled(models).equal(before)
    resumed = quick_step(models)
    shutil.rmtree(own_results.parent)
    whole = quick_step(models)
    assert resumed[0] == whole[0] and same_museum(resumed[1], whole[1])


def test_a_result_that_cannot_be_drawn_is_kept(own_results: Path, caplog: pytest.LogCaptureFixture):
    models = load_starter()
    whole = quick_step(models)
    shutil.rmtree(own_results.parent)
    handle = networks(models)[0].get_submodule(UNET).register_forward_pre_hook(AtCall(70, run_out))
    undrawn = quick_step(models)
    handle.remove()
    assert "could not be drawn" in caplog.text
    again = quick_step(models)
    for losses, museum in (undrawn, again):
        assert losses == whole[0] and same_museum(museum, whole[1])
    assert len(list(own_results.glob("*.result.safetensors"))) == 1


@pytest.mark.parametrize("open_numbers", [True, False])
def test_train_step_that_runs_out_of_memory_goes_on_with_checkpointing(
    own_results: Path, caplog: pytest.LogCaptureFixture, open_numbers: bool
):
    """By itself if the user left that open, otherwise when told to; the earlier steps are not trained again."""
    models, plain = load_starter(), recipe(batch_size=4)
    whole = quick_step(models, plain, preview_every=0)
    shutil.rmtree(own_results.parent)
    before, left = sampled(models), traces(models)
    unet = networks(models)[0].get_submodule(UNET)
    handle = unet.register_forward_pre_hook(AtCall(3, lambda: torch.empty(2**50)))
    with caplog.at_level("INFO"):
        if open_numbers:
            found = quick_step(models, Draft(plain, frozenset(AUTOMATIC) - {"checkpointing"}), preview_every=0)
            assert "out of memory at step 3 with fp32, batch 4 · " in caplog.text
        else:
            with pytest.raises(
                torch.OutOfMemoryError, match=r"at step 3\. Turn on checkpointing: training then goes on"
            ):
                quick_step(models, plain, preview_every=0)
            found = quick_step(models, replace(plain, checkpointing=True), preview_every=0)
    handle.remove()
    assert found[0] == pytest.approx(whole[0], rel=1e-4) and found[0][:2] == whole[0][:2]
    assert found[1].exhibits[0].recipe.checkpointing and not list(own_results.glob("*.state.safetensors"))
    assert traces(models) == left and sampled(models).equal(before)


@pytest.mark.parametrize("spoil", ["a wrong bit", "of another learning", "a number that is none"])
def test_damaged_state_is_set_aside_and_training_restarts(own_results: Path, spoil: str):
    models = load_starter()
    handle = networks(models)[0].get_submodule(UNET).register_forward_pre_hook(AtCall(27, CANCEL))
    with pytest.raises(INTERRUPTED):
        quick_step(models)
    handle.remove()
    (path,) = own_results.glob("*.state.safetensors")
    state = load_state(path)
    if spoil == "a wrong bit":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif spoil == "of another learning":
        save_state(replace(state, key="0" * 64), path)
    else:
        tensors = {name: value.fill_(float("nan")) for name, value in state.tensors.items()}
        path.write_bytes(save(tensors, metadata_of(path)))  # which `save_state` refuses
    anew = quick_step(models)
    assert path.with_name(f"{path.name}.damaged").exists() and not path.exists()
    shutil.rmtree(own_results.parent)
    whole = quick_step(models)
    assert anew[0] == whole[0] and same_museum(anew[1], whole[1])


def metadata_of(path: Path) -> dict[str, str]:
    """Without the hash."""
    with safe_open(path, "pt") as file:
        return {name: value for name, value in file.metadata().items() if name != "clora.hash"}


def test_without_a_writable_store_training_works_and_says_so(own_results: Path, caplog: pytest.LogCaptureFixture):
    models = load_starter()
    whole = quick_step(models)
    shutil.rmtree(own_results.parent)
    own_results.parent.mkdir()
    own_results.write_text("in the way")
    with caplog.at_level("INFO"):
        found = quick_step(models)
    own_results.unlink()
    assert found[0] == whole[0] and same_museum(found[1], whole[1])
    assert caplog.text.count("results cannot be stored in") == 1 and "a result cannot be stored" not in caplog.text


def test_global_rng_is_neither_used_nor_changed(own_results: Path):
    """ComfyUI and other nodes use torch's global generator and rely on the number of threads."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        found.append(quick_step(load_starter()))
        assert torch.get_rng_state().equal(state) and torch.get_num_threads() == threads
        shutil.rmtree(own_results.parent)
    assert found[0][0] == found[1][0] and same_museum(found[0][1], found[1][1])


def test_base_is_freed_after_use():
    """ComfyUI logs "potential memory leak" for a model that outlives the last node that used it."""
    base = HostBase(*load_starter())
    learned(base, Museum(base.fingerprint), "<one>")
    gone = weakref.ref(base), weakref.ref(base.model)
    gc.disable()
    try:
        del base
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
