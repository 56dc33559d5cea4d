"""However a learning ends, the host's models are as they were."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from clora_pack.clora_core.learn import Progress, learn
from clora_pack.clora_core.museum import Museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from torch import Tensor, nn

from .models import Models, concept, learned, ordinary, pictures, recipe, small_models


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


class UnforeseenError(Exception):
    """Something unforeseen."""


def interrupt(progress: Progress) -> None:
    comfy.model_management.interrupt_current_processing()


def fail(progress: Progress) -> None:
    raise UnforeseenError


def at(step: int, act: Callable[[Progress], None]) -> Callable[[Progress], None]:
    return lambda progress: act(progress) if progress.step == step else None


class OutOfMemory:
    """A hook that runs out of memory, as the device would, at its n-th call."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, *inputs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("out of memory")


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


ENDINGS: dict[str, tuple[Callable[[Progress], None] | None, type[BaseException] | None]] = {
    "ends": (None, None),
    "interrupted after 1": (at(1, interrupt), comfy.model_management.InterruptProcessingException),
    "interrupted after 3": (at(3, interrupt), comfy.model_management.InterruptProcessingException),
    "fails": (at(2, fail), UnforeseenError),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_learning_leaves_nothing(models: Models, ending: str):
    report, error = ENDINGS[ending]
    checkpointing = ending != "ends"
    before, weights = sampled(models), bits(models)
    left, mode = traces(models), (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    base = HostBase(*models)
    with ordinary():
        museum = Museum(base.fingerprint)
        if error is None:
            learn(base, museum, concept(), recipe(checkpointing=checkpointing))
        else:
            with pytest.raises(error):
                learn(base, museum, concept(), recipe(checkpointing=checkpointing), report=report)
    assert traces(models) == left
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
    assert bits(models) == weights
    assert sampled(models).equal(before)


@pytest.mark.parametrize("call", [2, 5])
@pytest.mark.parametrize("where", ["diffusion_model.out.2", "diffusion_model.input_blocks.1.0"])
def test_running_out_of_memory_leaves_nothing(models: Models, where: str, call: int):
    before = sampled(models)
    left = traces(models)
    base = HostBase(*models)
    handle = models[0].model.get_submodule(where).register_forward_pre_hook(OutOfMemory(call))
    try:
        with ordinary(), pytest.raises(torch.OutOfMemoryError):
            learn(base, Museum(base.fingerprint), concept(), recipe(steps=8))
    finally:
        handle.remove()
    assert traces(models) == left
    assert sampled(models).equal(before)


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "sampled before"])
def test_weights_come_as_inference_tensors_and_can_be_learned_over(used: bool):
    models = load_starter()
    if used:
        sampled(models)
    assert all(parameter.is_inference() for parameter in models[0].model.diffusion_model.parameters())
    base = HostBase(*models)
    _, losses = learned(base, Museum(base.fingerprint), "<one>")
    assert len(losses) == recipe().steps


def test_memory_is_given_back_however_it_ends():
    base = HostBase(*load_starter())
    held: list[weakref.ref] = []

    def report(progress: Progress) -> None:
        held.extend(weakref.ref(parameter) for parameter in progress.trained.parameters().values())
        if progress.step == 2:
            raise UnforeseenError

    with ordinary():
        with pytest.raises(UnforeseenError):
            learn(base, Museum(base.fingerprint), concept(), recipe(), report=report)
        gc.collect()
    assert held and not any(parameter() is not None for parameter in held)


def test_pictures_may_be_decoded_in_the_middle_without_changing_what_is_learned():
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
            learn(base, Museum(base.fingerprint), concept(), recipe(), report=report)
        found.append(losses)
    assert found[0] == found[1]


def test_a_model_that_was_loaded_in_part_is_loaded_completely():
    models = load_starter()
    expected = learned(HostBase(*models), Museum(HostBase(*models).fingerprint), "<one>")[1]
    before = sampled(models)
    model = models[0]
    comfy.model_management.unload_all_models()
    model.patch_model(model.load_device, lowvram_model_memory=1000)
    assert model.model.model_lowvram
    base = HostBase(*models)
    assert learned(base, Museum(base.fingerprint), "<one>")[1] == expected
    assert not model.model.model_lowvram
    assert sampled(models).equal(before)
