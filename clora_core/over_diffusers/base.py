"""`Base` for diffusers and transformers: SD1.5, SD2, SDXL, and the built-in starter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import BaseModelError
from ..model.attach import Reading
from ..model.attachment import Attachment
from ..model.base import (
    Conditioning,
    Prediction,
    Schedule,
    check_parts,
    fingerprint,
    latent_sides,
    pooled_of,
)
from ..model.chunks import by_length
from ..model.concept import ConceptToken
from ..model.families import recognized
from ..model.layers import layer_count
from ..model.precision import AUTOCAST, Precision
from ..model.projections import Projection, Slot
from ..starter.layout import NAME
from ..starter.model import Starter, load_starter_parts
from .checkpoints import Parts, model_errors, open_parts
from .prompts import TextEncoder, encode, word_vectors

PICTURES_AT_ONCE = 4


def open_base(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    tokenizer: Path | None = None,
    prediction: Prediction | None = None,
    clip_skip: int | None = None,
) -> "DiffusersBase":
    """Open "starter", a diffusers pipeline's folder, or a single .safetensors checkpoint of SD1.5, SD2 or SDXL.

    dtype: of the UNet and the text encoders; the autoencoder is always float32. tokenizer: a folder with CLIP's
    tokenizer, for a single file where the hub cannot be reached. prediction: what the model predicts, if the rule
    in `checkpoints` gets it wrong. clip_skip: as in ComfyUI and A1111; None for the family's default. Raises
    BaseModelError for everything that cannot be opened.
    """
    if str(path_or_name) == NAME:
        try:
            return DiffusersBase(starter_parts(load_starter_parts()), dtype=dtype, device=device, clip_skip=clip_skip)
        except (OSError, RuntimeError) as error:
            raise BaseModelError(f"The starter model cannot be loaded: {error}. Install this package again.") from error
    exact = torch.float16 if dtype == torch.float16 else torch.float32  # bfloat16 would change the fingerprint
    path = Path(path_or_name)
    with model_errors(path):
        parts = open_parts(path, dtype=exact, tokenizer=tokenizer, prediction=prediction)
        base = DiffusersBase(parts, dtype=dtype, device=device, clip_skip=clip_skip)
        base.try_out()
    return base


def starter_parts(starter: Starter) -> Parts:
    """The parts of a starter model, trained or not."""
    padding = starter.tokenizer.pad_token_id
    encoder = TextEncoder("clip_l", starter.text_encoder, starter.tokenizer, padding)  # type: ignore[arg-type]
    schedule = Schedule(starter.scheduler.alphas_cumprod.float(), starter.scheduler.config["prediction_type"])
    return Parts(starter.unet, starter.vae, (encoder,), schedule)


class DiffusersBase:
    """The parts of a model as one frozen `Base`, which explains the methods. They are moved and cast in place."""

    def __init__(
        self,
        parts: Parts,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        clip_skip: int | None = None,
    ) -> None:
        self.family, slots = recognized(parts.unet)
        self.slots: Mapping[Projection, Slot] = slots
        widths = {encoder.name: encoder.width for encoder in parts.encoders}
        reads, makes = parts.unet.config["in_channels"], parts.vae.config["latent_channels"]
        check_parts(self.family, widths, reads=reads, makes=makes)
        self.fingerprint = fingerprint(self.family, self.slots)
        self.schedule: Schedule = parts.schedule
        self.device = torch.device(device)
        self.clip_skip = self.family.clip_skip if clip_skip is None else clip_skip
        self.unet, self.vae, self.encoders = parts.unet, parts.vae, tuple(map(self._skipping, parts.encoders))
        for model in self._models:
            own = torch.float32 if model is self.vae else dtype
            nn.Module.to(model, device=self.device, dtype=own)  # diffusers' own method warns unnecessarily
            model.eval().requires_grad_(False)
        self._compute: torch.dtype | None = None
        self.attachments: list[Attachment] = []
        self._reading: AbstractContextManager[None] = nullcontext()  # of the current call of `predict`

    @torch.no_grad()
    def try_out(self) -> None:
        """Run every part once on the smallest picture, to find parts that do not fit together.

        Raises BaseModelError for outputs of another shape or that are not finite, and whatever torch raises.
        """
        side = 8 * self.factor
        picture, latents = torch.zeros(1, 3, side, side), torch.zeros(1, *self.latent_shape(side, side))
        last = torch.tensor([len(self.schedule.levels) - 1])
        for name, output, expected in (
            ("UNet", self.predict(latents, last, self.encode_prompts([""], ())), latents),
            ("autoencoder", self.encode_pictures(picture), latents),
            ("autoencoder", self.decode_latents(latents), picture),
        ):
            if output.shape != expected.shape or not output.isfinite().all():
                raise BaseModelError(
                    f"The {name} of this model returned shape {tuple(output.shape)}, or numbers that are not finite; "
                    f"expected finite numbers of shape {tuple(expected.shape)}. Get the model again."
                )
        if type(self.resolution_px) is not int or self.resolution_px < side:
            raise BaseModelError(
                f"The UNet's sample_size is {self.unet.config['sample_size']!r:.60}; it must be the side of the "
                "latents that the model was trained on, such as 64."
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def resolution_px(self) -> int:
        """The side of the pictures that the model was trained on."""
        size = self.unet.config["sample_size"] or 64
        return self.factor * (size if isinstance(size, int) else min(size))

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return self.family.latent_shape(*latent_sides(height, width, self.factor))

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's posterior (so it is deterministic) times its scaling factor."""
        self.latent_shape(*pictures.shape[-2:])
        latents = []
        for part in pictures.split(PICTURES_AT_ONCE):
            output = self.vae.encode(part.to(self.device, torch.float32))
            mean = output.latent_dist.mode() if isinstance(self.vae, AutoencoderKL) else output.latents  # type: ignore[union-attr]
            latents.append((mean * self.vae.config["scaling_factor"]).cpu())
        return torch.cat(latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        scaled = latents / self.vae.config["scaling_factor"]
        parts = scaled.split(PICTURES_AT_ONCE)
        decoded = [self.vae.decode(part.to(self.device, torch.float32)).sample for part in parts]  # type: ignore[union-attr]
        return torch.cat([part.clamp(-1, 1).cpu() for part in decoded])

    def vocabulary(self) -> dict[str, Tensor]:
        return {encoder.name: encoder.table.weight.detach() for encoder in self.encoders}

    def word_vectors(self, word: str) -> dict[str, Tensor]:
        return {encoder.name: word_vectors(encoder, word) for encoder in self.encoders}

    def encode_prompts(self, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        return encode(self.encoders, prompts, tokens, layers=layer_count(self.slots))

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return by_length(self._predict, noisy, timesteps, conditioning)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.unet.dtype
        states = conditioning.states[..., : self.family.text_width]
        inputs = noisy.to(self.device, dtype), timesteps.to(self.device), states.to(self.device, dtype)
        autocast = torch.autocast(self.device.type, dtype=self._compute) if self._compute else nullcontext()
        added = self._added(inputs[0], conditioning)
        self._reading = Reading.of_prompts(self, conditioning)
        try:
            with autocast, self._reading:
                (prediction,) = self.unet(*inputs, added_cond_kwargs=added, return_dict=False)
        finally:
            self._reading = nullcontext()
        return prediction.float()

    @contextmanager
    def learning(self, *, precision: Precision, checkpointing: bool, words: bool = True) -> Iterator[torch.dtype]:
        """While entered, everything is frozen, and `predict` computes in that precision, optionally with checkpointing.

        Yields the dtype of the computation; fp32 means the dtype of the weights.
        """
        with ExitStack() as afterwards:
            for model in self._models:
                for module in model.modules():
                    afterwards.callback(setattr, module, "training", module.training)
                for parameter in model.parameters():
                    afterwards.callback(parameter.requires_grad_, parameter.requires_grad)
                model.eval().requires_grad_(False)
            if checkpointing:
                on = self.unet.is_gradient_checkpointing
                afterwards.callback(
                    self.unet.enable_gradient_checkpointing if on else self.unet.disable_gradient_checkpointing
                )
                self.unet.enable_gradient_checkpointing(self._checkpointed)
            afterwards.callback(setattr, self, "_compute", self._compute)
            self._compute = AUTOCAST[precision]
            yield self._compute or self.unet.dtype

    def _checkpointed(self, block: nn.Module, *inputs: Any) -> Any:
        """Run a block and keep only its inputs; the backward pass runs it again, with the same `Reading`."""
        reading = self._reading
        return checkpoint(block.__call__, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), reading))

    def _skipping(self, encoder: TextEncoder) -> TextEncoder:
        """The encoder with the layer of `clip_skip`. Raises BaseModelError if there is no such layer."""
        skipped, layers = self.clip_skip - self.family.clip_skip, encoder.model.config.num_hidden_layers
        most = layers + self.family.clip_skip - 1 - encoder.penultimate
        least = self.family.clip_skip - encoder.penultimate
        if not least <= self.clip_skip <= most:
            raise BaseModelError(
                f"CLIP skip is {self.clip_skip}, but with the text encoder {encoder.name} of {self.family.title} it "
                f"can be {least} to {most}. The default of this family is {self.family.clip_skip}."
            )
        return replace(encoder, skipped=skipped)

    @property
    def _models(self) -> tuple[nn.Module, ...]:
        return (self.unet, self.vae, *(encoder.model for encoder in self.encoders))

    def _added(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """SDXL's additional inputs: pooled text, and (height, width, top, left, height, width) in pixels."""
        if self.unet.config["addition_embed_type"] is None:
            return None
        height, width = (side * self.factor for side in latents.shape[-2:])
        whole = torch.tensor([[height, width, 0, 0, height, width]])
        sizes = (whole if conditioning.sizes is None else conditioning.sizes).to(latents)
        return {"text_embeds": pooled_of(conditioning).to(latents), "time_ids": sizes.expand(len(latents), -1)}
