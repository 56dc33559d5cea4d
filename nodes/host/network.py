"""Call a diffusion model as ComfyUI's samplers do: with the model's own conditions, some rows at a time."""

from collections.abc import Sequence
from typing import Any

import comfy.model_base
import comfy.model_sampling
import torch
import torch.nn.functional as F
from torch import Tensor

from ...clora_core.errors import BaseModelError
from ...clora_core.model.base import Conditioning, Schedule
from .conditioning import IDS, SECOND
from .model import ModelPatcher, unet_of

ROWS = 512  # of text, at least, behind an adapter
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")


def clock(model: ModelPatcher, schedule: Schedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The noise levels in ComfyUI's terms, and what the network reads as the time; (b,) each.

    Models of flow matching read a noise level σ. Cosmos' sampler counts noise in proportion to the signal instead.
    """
    sampling: Any = model.get_model_object("model_sampling")
    if schedule.prediction != "flow":
        return sampling.sigma(timesteps.float().cpu()), timesteps.float()
    sigmas = schedule.levels[timesteps.cpu()]
    if type(sampling).calculate_input is comfy.model_sampling.COSMOS_RFLOW.calculate_input:
        sigmas = sigmas / (1 - sigmas)
    return sigmas, sampling.timestep(sigmas).float()


def call(model: ModelPatcher, latents: Tensor, times: Tensor, conditioning: Conditioning, **options: Any) -> Tensor:
    """The network's raw output, (b, …) float32, for prompts of equal length. options: other inputs of the network."""
    parts = [_conditions(model, latents[row : row + 1], conditioning, row) for row in range(len(latents))]
    joined = {name: first.concat([part[name] for part in parts[1:]]) for name, first in parts[0].items()}
    if "c_concat" in joined:
        raise BaseModelError(
            f"This {type(model.model).__name__} model is conditioned on a picture (inpainting, control or image to "
            "video). Use the text-to-image model instead."
        )
    context = joined.pop("c_crossattn")
    extras = {name: _cast(value, latents) for name, value in joined.items()}
    network = model.model.diffusion_model
    return network(latents, times, context=context.to(latents, copy=True), control=None, **options, **extras).float()


def own_dtype(model: ModelPatcher) -> torch.dtype:
    """The dtype in which the network computes when it samples."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def adapted(model: ModelPatcher, states: Tensor, extras: dict[str, Any]) -> Tensor:
    """What the network's own adapter makes of the text states (1, n, width), if it has one; (1, rows, width) float32.

    It reads the ids of a second tokenizer, which are taken out of `extras`, and gives a row for each. The states of a
    second encoder stay in `extras`, with rows of zeros in their place.
    """
    if SECOND in extras:
        return F.pad(states, (0, 0, 0, extras[SECOND].shape[1]))
    ids, weights = extras.pop(IDS, None), extras.pop("t5xxl_weights", None)
    if ids is None:
        return states
    device = model.load_device
    adapter: Any = unet_of(model).preprocess_text_embeds
    read = adapter(states.to(device, own_dtype(model)), ids[None].to(device)).float()
    if weights is not None:
        read = read * weights[None, :, None].to(read)
    return F.pad(read, (0, 0, 0, max(0, ROWS - read.shape[1])))


def _conditions(model: ModelPatcher, latents: Tensor, conditioning: Conditioning, row: int) -> dict[str, Any]:
    """The model's conditions for one prompt and one latent, ready to be joined."""
    extras = dict(conditioning.extras[row]) if conditioning.extras else {}
    height, width = (side * 8 for side in latents.shape[-2:])
    sizes: Sequence[int] = (height, width)
    if conditioning.sizes is not None:
        sizes = conditioning.sizes[row].tolist()
    pooled = None if conditioning.pooled is None else conditioning.pooled[row : row + 1]
    states = conditioning.states[row : row + 1]
    if SECOND in extras:
        states = states[:, : states.shape[1] - extras[SECOND].shape[1]]
    conditions = model.model.extra_conds(
        cross_attn=states,
        pooled_output=pooled,
        noise=latents,
        device=latents.device,
        **dict(zip(SIZES, sizes, strict=False)),
        **extras,
    )
    return {
        name: condition.process_cond(batch_size=1, device=latents.device, area=None)
        for name, condition in conditions.items()
    }


def _cast(value: Any, like: Tensor) -> Any:
    if isinstance(value, list):
        return [_cast(part, like) for part in value]
    if isinstance(value, Tensor):
        return comfy.model_base.convert_tensor(value, like.dtype, like.device)
    return value
