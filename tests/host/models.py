"""Small real models in ComfyUI's own classes, and things to learn with."""

import importlib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import torch
from clora_pack.clora_core.learning.learn import Progress, learn
from clora_pack.clora_core.learning.start import start_vectors
from clora_pack.clora_core.method.recipe import Recipe
from clora_pack.clora_core.method.regularizers import SelfRegularization
from clora_pack.clora_core.model.base import Base
from clora_pack.clora_core.model.concept import Concept, ConceptToken
from clora_pack.clora_core.model.low_rank import LowRank
from clora_pack.clora_core.museum.museum import Exhibit, Museum
from clora_pack.nodes.host.differentiable import ordinary_tensors
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

Models = tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]

UNET: Mapping[str, Any] = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [2, 1],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}
CLIP: Mapping[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SMALL_CLIPS: Mapping[str, Any] = {f"clip_{name}_model_config": CLIP for name in ("l", "g", "h")}
HEADS: Mapping[str, Any] = {"num_heads": 4, "num_head_channels": -1}


def extra(file: str) -> ModuleType:
    """One of the files of nodes that come with ComfyUI."""
    folder = "comfy_extras.nodes" if importlib.util.find_spec("comfy_extras.nodes") else "comfy_extras"
    return importlib.import_module(f"{folder}.{file}")


_INTERRUPTING = "comfy.interruption" if importlib.util.find_spec("comfy.interruption") else "comfy.model_management"
INTERRUPTED = importlib.import_module(_INTERRUPTING).InterruptProcessingException  # where somebody pressed Cancel


class SmallSD15(comfy.supported_models.SD15):
    unet_extra_config = HEADS


class SmallSD2(comfy.supported_models.SD20):
    unet_extra_config: Mapping[str, Any] = {**HEADS, "attn_precision": torch.float32}


class SmallSDXL(comfy.supported_models.SDXL):
    unet_extra_config = HEADS


FAMILIES = {
    "sd15": (SmallSD15, {}),
    "sd2": (SmallSD2, {"context_dim": 1024, "use_linear_in_transformer": True}),
    "sdxl": (
        SmallSDXL,
        {
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
            "transformer_depth": [0, 0, 2],
            "transformer_depth_output": [0, 0, 0, 2, 2],
        },
    ),
}
FLOAT8 = torch.float8_e4m3fn
DIFFERENT_ROWS = 997  # of a word table, which then repeats, so that it is quickly made


def small_models(
    family: str, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None, *, scaled: bool = False
) -> Models:
    """A model of the family's real layout, text widths and tokenizers, with random weights and few channels.

    dtype: that the UNet is stored in; compute: what it computes in, where that is another. scaled: it is stored in
    float8 with a scale beside each linear layer, and computes in float32.
    """
    with made_at_once():
        return _model(family, dtype, compute, scaled), _clip(family), small_vae()


def _model(
    family: str, dtype: torch.dtype, compute: torch.dtype | None, scaled: bool, *, disable_dynamic: bool = False
) -> ModelPatcher:
    kind, changes = FAMILIES[family]
    config = kind({**UNET, **changes})
    config.set_inference_dtype(dtype, compute)
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model({}, "", device=offload)
    fill(model.diffusion_model, seed=1)
    if scaled:
        round_to_float8(model.diffusion_model)
        model = in_scaled_float8(model.diffusion_model, kind({**UNET, **changes}))
    paged = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    patcher = (ModelPatcher if disable_dynamic else paged)(model, comfy.model_management.get_torch_device(), offload)
    patcher.cached_patcher_init = (made_at_once()(_model), (family, dtype, compute, scaled))
    return patcher


def _clip(family: str, **options: bool) -> comfy.sd.CLIP:
    kind, changes = FAMILIES[family]
    clip = comfy.sd.CLIP(kind({**UNET, **changes}).clip_target(), model_options=dict(SMALL_CLIPS), **options)
    fill(clip.cond_stage_model, seed=2)
    clip.patcher.cached_patcher_init = (made_at_once()(_text), (family,))
    return clip


def _text(family: str, **options: bool) -> ModelPatcher:
    return _clip(family, **options).patcher


@contextmanager
def made_at_once() -> Iterator[None]:
    """Newer ComfyUIs may put off making weights until there are some in a file; ours come from none."""
    memory = getattr(comfy, "memory_management", None)
    if not getattr(memory, "aimdo_enabled", False):
        yield
        return
    memory.aimdo_enabled = False
    try:
        yield
    finally:
        memory.aimdo_enabled = True


@torch.no_grad()
def round_to_float8(unet: nn.Module) -> None:
    """Give linear layers weights that are float8 numbers times a scale, and biases of float8; all else float16."""
    for module in unet.modules():
        for name, weight in module.named_parameters(recurse=False):
            if not isinstance(module, nn.Linear):
                weight.copy_(weight.half())
            elif name == "weight":
                scale = _scale(weight)
                weight.copy_((weight / scale).to(FLOAT8).float() * scale)
            else:
                weight.copy_(weight.to(FLOAT8))


def in_scaled_float8(unet: nn.Module, config: comfy.supported_models_base.BASE) -> comfy.model_base.BaseModel:
    """The same model with its linear layers in float8 and a scale beside each, as such files are published."""
    tensors: dict[str, Tensor] = dict(unet.state_dict())
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear):
            scale = _scale(module.weight)
            tensors[f"{name}.weight"] = (module.weight / scale).to(FLOAT8)
            tensors |= {f"{name}.scale_weight": scale, f"{name}.scale_input": torch.ones(())}
    if hasattr(comfy.utils, "convert_old_quants"):  # newer ComfyUIs read them as quantized tensors
        tensors["scaled_fp8"] = torch.empty(0, dtype=FLOAT8)
        tensors, _ = comfy.utils.convert_old_quants(tensors)
        config.quant_config = comfy.utils.detect_layer_quantization(tensors, "")
    else:
        config.scaled_fp8 = FLOAT8
        config.optimizations["fp8"] = True
    config.set_inference_dtype(torch.float16, torch.float32)
    model = config.get_model({}, "", device=comfy.model_management.unet_offload_device())
    model.diffusion_model.load_state_dict(tensors)
    return model


def _scale(weight: Tensor) -> Tensor:
    return weight.abs().max() / torch.finfo(FLOAT8).max


def small_vae(channels: int = 4) -> comfy.sd.VAE:
    taesd = comfy.taesd.taesd.TAESD(latent_channels=channels)
    scale = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    fill(taesd, seed=3)
    return comfy.sd.VAE(sd={**taesd.state_dict(), **scale})


@torch.no_grad()
def fill(module: nn.Module, *, seed: int) -> None:
    """ComfyUI leaves weights uninitialized; give each a scale at which signals neither vanish nor explode."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if tensor.ndim < 2:
            numbers = 0.1 * torch.randn(tensor.shape, generator=rng) + float(name.endswith("weight"))
        else:
            scale = 0.05 if "embedding" in name else 1 / math.sqrt(tensor[0].numel())
            rows = scale * torch.randn(min(len(tensor), DIFFERENT_ROWS), *tensor.shape[1:], generator=rng)
            numbers = rows[torch.arange(len(tensor)) % len(rows)]
        tensor.copy_(numbers)


def denoised(model: ModelPatcher, states: Tensor, pooled: Tensor | None = None) -> Tensor:
    """What the stock sampler is told in its first step about `noise` at the highest level."""
    seen: list[Tensor] = []
    start = noise(model)
    conditions = [[states, {"pooled_output": torch.ones(1, 1280) if pooled is None else pooled}]]

    def watch(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        seen.append(x0.clone())

    empty = torch.zeros_like(start)
    options = {"seed": 1, "callback": watch, "disable_pbar": True}
    comfy.sample.sample(model, start, 1, 1.0, "euler", "normal", conditions, conditions, empty, **options)
    return seen[0].cpu()


def noise(model: ModelPatcher) -> Tensor:
    channels = model.model.latent_format.latent_channels
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(7))


def noisiest(model: ModelPatcher) -> tuple[Tensor, Tensor]:
    """The highest noise level, and `noise` scaled to it as the sampler does."""
    sampling = model.get_model_object("model_sampling")
    start = noise(model)
    return sampling.sigma_max, sampling.noise_scaling(sampling.sigma_max, start, torch.zeros_like(start), True)


def ordinary() -> AbstractContextManager[None]:
    """Out of the inference mode that tests here run under, for what is no part of the host."""
    return ordinary_tensors()


def pictures(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """Pictures of nothing, (n, 3, side, side) in [-1, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stock(node: type, **inputs: Any) -> Any:
    """The first output of one of ComfyUI's own nodes, in whichever of its two ways the node is written."""
    found = getattr(node(), node.FUNCTION)(**inputs)
    return (found if isinstance(found, tuple) else found.args)[0]


def concept(word: str = "<one>", *, seed: int = 0, **more: Any) -> Concept:
    return Concept(word, pictures(4, seed=seed), **more)


def recipe(**numbers: Any) -> Recipe:
    """C-LoRA in a few steps that move the deltas visibly."""
    quick = {"rank": 2, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "token_learning_rate": 1e-2}
    return Recipe("c-lora", (SelfRegularization(),), **{**quick, **numbers})


def learned(base: Base, museum: Museum, word: str, *, seed: int = 0, **numbers: Any) -> tuple[Museum, list[float]]:
    """The museum with one more word, and the loss of every step."""
    losses: list[float] = []

    def report(progress: Progress) -> None:
        losses.append(progress.loss)

    with ordinary():
        return taught(base, museum, concept(word, seed=seed), recipe(**numbers), report=report), losses


def taught(
    base: Base, museum: Museum, concept: Concept, recipe: Recipe, *, companions: Sequence[Concept] = (), **more: Any
) -> Museum:
    """The museum with one more exhibit, or with as many as were learned together."""
    return museum.with_exhibits(*learn(base, museum, [*companions, concept], recipe, **more))


def random_museum(base: Base, *words: str, size: float = 0.05, rank: int = 2) -> Museum:
    """Exhibits of random numbers; size: of a delta's entries in proportion to those of a weight."""
    museum = Museum(base.fingerprint)
    for number, word in enumerate(words):
        rng = torch.Generator().manual_seed(number)
        deltas = {
            projection: LowRank(
                size * torch.randn(projection.shape[0], rank, generator=rng) / math.sqrt(rank),
                torch.randn(rank, projection.shape[1], generator=rng) / math.sqrt(projection.shape[1]),
            )
            for projection in base.slots
        }
        with ordinary():
            vectors = start_vectors(base, concept(word))
        museum = museum.with_exhibits(Exhibit(ConceptToken(word, vectors), deltas, recipe()))
    return museum
