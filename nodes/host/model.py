"""The parts of a loaded ComfyUI model, regardless of the patches on it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.utils
import torch
from torch import Tensor, nn

from ...clora_core.errors import BaseModelError
from ...clora_core.model.base import Fingerprint, Prediction, Schedule, fingerprint
from ...clora_core.model.families import recognized
from ...clora_core.model.families.family import Family
from ...clora_core.model.projections import Place, Projection, Slot
from .refused import why_refused

ModelPatcher = comfy.model_patcher.ModelPatcher
PREFIX = "diffusion_model."
FLOW_STEPS = 1000


def unet_of(model: ModelPatcher) -> nn.Module:
    """The UNet; all clones of the model share it."""
    return model.model.diffusion_model


def slots_of(model: ModelPatcher) -> dict[Projection, Slot]:
    """The projections. Raises BaseModelError, with the model's class and the reason, for an unsupported model."""
    return _recognized(model)[1]


def family_of(model: ModelPatcher) -> Family:
    """The model's family. Raises BaseModelError like `slots_of`."""
    return _recognized(model)[0]


def _recognized(model: ModelPatcher) -> tuple[Family, dict[Projection, Slot]]:
    if reason := why_refused(model.model):
        raise BaseModelError(f"{type(model.model).__name__} does not support C-LoRA. {reason}")
    try:
        return recognized(unet_of(model))
    except BaseModelError as error:
        raise BaseModelError(f"{type(model.model).__name__} does not support C-LoRA. {error}") from error


def places_of(model: ModelPatcher) -> dict[Projection, Place]:
    """projection → where it is in the diffusion model, by ComfyUI's names."""
    paths = {module: path for path, module in unet_of(model).named_modules()}
    return {projection: Place(paths[slot.module], slot.first_row) for projection, slot in slots_of(model).items()}


def fingerprint_of(model: ModelPatcher) -> Fingerprint:
    """The fingerprint of the model's own weights; LoRAs that are merged at the moment do not change it."""
    family, slots = _recognized(model)
    paths = {module: path for path, module in unet_of(model).named_modules()}
    own = {
        projection: replace(slot, module=_Weight(own_weight(model, paths[slot.module])))
        for projection, slot in slots.items()
    }
    return fingerprint(family, own)


def own_weight(model: ModelPatcher, path: str) -> Tensor:
    """The weight of a UNet's module as it was loaded, in its stored dtype."""
    key = f"{PREFIX}{path}.weight"
    return original(model, key, comfy.utils.get_attr(model.model, key)).detach()


def original(patcher: ModelPatcher, key: str, weight: Tensor) -> Tensor:
    """The weight as it was loaded: ComfyUI merges patches into it and keeps the original in a backup of all clones."""
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    return patcher.backup[key].weight if key in patcher.backup else weight


def take_off_others(model: ModelPatcher) -> None:
    """Unmerge other clones' patches from the shared weights if loading this model would leave them there.

    ComfyUI records on the model itself whose patches are merged; hiddenswitch's fork records it on each clone, so one
    clone does not see another's patches.
    """
    if hasattr(model.model, "current_weight_patches_uuid"):
        return
    for loaded in comfy.model_management.current_loaded_models:
        if loaded.model is not None and loaded.model is not model and model.is_clone(loaded.model):
            loaded.model.detach()


def stored_dtype(weight: Tensor) -> torch.dtype | None:
    """The dtype in which a weight is stored. None for a quantized one, which reports the dtype that it represents."""
    return weight.dtype if type(weight.data) is Tensor else None


def run_dtype(module: nn.Module, name: str, weight: Tensor) -> torch.dtype | None:
    """The dtype that a module's weight has at run time; if ComfyUI pages weights, it often differs from the file's."""
    stored = stored_dtype(weight)
    return stored and (getattr(module, f"{name}_comfy_model_dtype", None) or stored)


def schedule_of(model: ModelPatcher) -> Schedule:
    """The model's noise schedule, or the one from a "ModelSampling…" node.

    Raises BaseModelError unless it predicts epsilon or v over discrete timesteps, or matches a flow.
    """
    sampling: Any = model.get_model_object("model_sampling")
    if "flow" in family_of(model).resolutions and (levels := _flow_levels(sampling)) is not None:
        return Schedule(levels, "flow")
    kind, discrete = type(sampling), comfy.model_sampling.ModelSamplingDiscrete
    predictions: Mapping[object, Prediction] = {
        comfy.model_sampling.EPS.calculate_denoised: "epsilon",
        comfy.model_sampling.V_PREDICTION.calculate_denoised: "v_prediction",
    }
    prediction = predictions.get(getattr(kind, "calculate_denoised", None))
    if (
        prediction is None
        or not isinstance(sampling, discrete)
        or kind.timestep is not discrete.timestep
        or kind.calculate_input is not comfy.model_sampling.EPS.calculate_input
        or sampling.sigma_data != 1
    ):
        bases = ", ".join(base.__name__ for base in kind.__bases__)
        raise BaseModelError(
            f"{type(model.model).__name__} samples with {bases}. C-LoRA needs a model that predicts epsilon or v over "
            "discrete timesteps, or flow matching. Remove the node that changes its sampling, or use another model."
        )
    variances = sampling.sigmas.detach().cpu().double().square()
    return Schedule((1 / (1 + variances)).float(), prediction)


def _flow_levels(sampling: Any) -> Tensor | None:
    """σ at FLOW_STEPS times, even before the model's shift, (FLOW_STEPS,); None if this is not flow matching."""
    times = torch.arange(1, FLOW_STEPS + 1) / FLOW_STEPS
    kinds = comfy.model_sampling
    if type(sampling).calculate_denoised is kinds.COSMOS_RFLOW.calculate_denoised:
        return times * float(sampling.sigma_max / (sampling.sigma_max + 1))
    if type(sampling).calculate_denoised is kinds.CONST.calculate_denoised:
        multiplier = float(getattr(sampling, "multiplier", 1.0))
        return torch.stack([torch.as_tensor(sampling.sigma(time * multiplier)).float() for time in times])
    return None


class _Weight(nn.Module):
    """A module that only has a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
