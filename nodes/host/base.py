"""The engine's `Base`, implemented with ComfyUI's MODEL, CLIP and VAE."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial

import comfy.model_management
import comfy.sd
import torch
from comfy.patcher_extension import copy_nested_dicts, merge_nested_dicts
from torch import Tensor, nn

from ...clora_core.errors import BaseModelError
from ...clora_core.model.attach import Reading
from ...clora_core.model.attachment import Attachment
from ...clora_core.model.base import Conditioning, Schedule, check_parts, latent_sides, pooled_of
from ...clora_core.model.chunks import by_length
from ...clora_core.model.concept import ConceptToken
from ...clora_core.model.families.family import Family
from ...clora_core.model.layers import check_layers, layer_count
from ...clora_core.model.precision import DTYPES, Precision
from ...clora_core.model.projections import Projection, Slot
from .differentiable import differentiable, differentiable_transformer, harmless, ordinary_tensors, plain_attention
from .model import ModelPatcher, family_of, fingerprint_of, schedule_of, slots_of, take_off_others, unet_of
from .network import adapted, call, clock, own_dtype
from .progress import check_interrupted
from .resident import resident_clip, resident_model
from .text import encode_as_the_model, encode_with_clip, vectors_of_word
from .view import base_beneath
from .words import CLIP, encoders, table, widths

VAE = comfy.sd.VAE
PICTURES_AT_ONCE = 4
EVERYTHING = 10**20  # bytes to request, so that ComfyUI unloads all other models


class HostBase:
    """ComfyUI's models as one frozen `Base`. Patches on them are part of the base, except for a museum.

    The models are only changed while `learning` is entered, and restored afterwards. Call `learn` within
    `ordinary_tensors()`. Long calls raise ComfyUI's InterruptProcessingException after Cancel.
    """

    def __init__(self, model: ModelPatcher, clip: CLIP, vae: VAE | None = None) -> None:
        model, clip = base_beneath(model, clip)
        self.family: Family = family_of(model)
        self.schedule: Schedule = schedule_of(model)
        self.fingerprint = fingerprint_of(model)
        self.device: torch.device = model.load_device
        self.vae = vae
        self.sources = model, clip  # what `model` and `clip` are made of
        self._latents = model.model.latent_format
        channels = int(self._latents.latent_channels)
        channels_read = channels
        if self.family.reads == "states":
            channels_read = int(model.model.model_config.unet_config.get("in_channels", channels))
        check_parts(
            self.family, widths(clip), reads=channels_read, makes=None if vae is None else int(vae.latent_channels)
        )
        self.attachments: list[Attachment] = []
        self._reading: AbstractContextManager[None] = nullcontext()  # entered while `predict` runs
        self._learning: tuple[torch.dtype, bool, bool] | None = None  # the UNet's dtype, checkpointing, words too
        self._changes = ExitStack()  # to undo before ComfyUI may move the models
        self._prepared = False

    @cached_property
    def model(self) -> ModelPatcher:
        """The model to run. If ComfyUI pages its weights, this loads a second, whole copy."""
        return resident_model(self.sources[0])

    @cached_property
    def clip(self) -> CLIP:
        """The CLIP to encode prompts with, loaded like `model`."""
        return resident_clip(self.sources[1])

    @cached_property
    def slots(self) -> Mapping[Projection, Slot]:
        """The projections of `model`."""
        return slots_of(self.model)

    @property
    def clip_skip(self) -> int:
        """The layer of the text encoders that prompts are read from, counted from the end: CLIP Set Last Layer."""
        layer = self.sources[1].layer_idx
        return self.family.clip_skip if layer is None else -layer

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(self._vae().spacial_compression_encode())

    @property
    def resolution_px(self) -> int:
        """The side of the square pictures that this model family was trained on."""
        return self.family.resolution_px(self.schedule.prediction)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return self.family.latent_shape(*latent_sides(height, width, self.factor))

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) in [-1, 1] to the network's latents, (n, *latent_shape) float32 on the CPU."""
        self.latent_shape(*pictures.shape[-2:])
        latents = []
        with self._resting():
            for part in pictures.split(1 if self.family.frames else PICTURES_AT_ONCE):  # several would be a video
                check_interrupted()
                encoded = self._vae().encode((part.float() / 2 + 0.5).movedim(1, -1))
                latents.append(self._latents.process_in(encoded.float()).cpu())
        return torch.cat(latents)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        pictures = []
        with self._resting():
            for part in latents.split(1 if self.family.frames else PICTURES_AT_ONCE):
                check_interrupted()
                decoded = self._vae().decode(self._latents.process_out(part.float()))
                decoded = decoded.reshape(-1, *decoded.shape[-3:])  # without the axis of frames
                pictures.append(decoded.float().cpu().movedim(-1, 1) * 2 - 1)
        return torch.cat(pictures).clamp(-1, 1)

    def vocabulary(self) -> dict[str, Tensor]:
        return {name: table(encoder).weight.detach() for name, encoder in encoders(self.clip).items()}

    def word_vectors(self, word: str) -> dict[str, Tensor]:
        return vectors_of_word(self.clip, word)

    def encode_prompts(self, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        """Encode prompts that may contain the tokens' words. Gradients reach their vectors. float32, on `device`."""
        self._ready_to_encode()
        for token in tokens:
            check_layers(token, layer_count(self.slots))
        if self.family.reads == "states":
            encoded = encode_with_clip(self.clip, prompts, tokens)
        else:
            encoded = encode_as_the_model(self.clip, prompts, tokens, partial(adapted, self.model))
        return encoded.to(self.device)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw prediction for latents noised by `schedule`, float32; gradients flow while learning."""
        return by_length(self._predict, noisy, timesteps, conditioning)

    def _predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        check_interrupted()
        self._ready(int(self.model.memory_required(noisy.shape)))
        dtype = self._learning[0] if self._learning else own_dtype(self.model)
        options = copy_nested_dicts(self.model.model_options["transformer_options"])
        merge_nested_dicts(options.setdefault("wrappers", {}), self.model.wrappers, copy_dict1=False)
        sigmas, times = clock(self.model, self.schedule, timesteps)
        options |= {"sigmas": sigmas.to(self.device), "cond_or_uncond": [0]}  # samplers pass these to patches
        if self._learning:
            options["optimized_attention_override"] = plain_attention
            if patches := options.get("patches", {}).get("output_block_patch"):
                options["patches"]["output_block_patch"] = [harmless(patch) for patch in patches]
        if self.family.pooled:
            pooled_of(conditioning)
        latents, times = noisy.to(self.device, dtype), times.to(self.device)
        plain = replace(conditioning, states=conditioning.states[..., : self.family.text_width])
        self._reading = Reading.of_prompts(self, conditioning)
        try:
            with self._reading:
                return call(self.model, latents, times, plain, transformer_options=options)
        finally:
            self._reading = nullcontext()

    @contextmanager
    def learning(self, *, precision: Precision, checkpointing: bool, words: bool = True) -> Iterator[torch.dtype]:
        """While entered, gradients flow and `predict` computes in this precision, optionally with checkpointing.

        Yields the dtype. Loads the whole UNet and, with `words`, the text encoder, and unloads every other model.
        Without, prompts can be encoded as well: the text encoder is loaded for them, and unloaded by `predict`.
        """
        before, self._learning = self._learning, (DTYPES[precision], checkpointing, words)
        try:
            with ordinary_tensors(), self._resting():
                self._ready()
                yield DTYPES[precision]
        finally:
            self._learning = before
            comfy.model_management.soft_empty_cache()

    def _ready_to_encode(self) -> None:
        """The same for prompts only, if the network may be moved to make room for the text encoder."""
        if self._learning is not None and self._learning[2]:
            self._ready()
        else:
            self._changes.close()
            adapts = hasattr(unet_of(self.model), "preprocess_text_embeds")
            models = [self.clip.patcher, self.model] if adapts else [self.clip.patcher]
            for patcher in models:
                take_off_others(patcher)
            comfy.model_management.load_models_gpu(models)

    def _ready(self, memory_required: int = 0) -> None:
        """Load the network with this much free memory; while learning, load it once, whole, and differentiable, and
        the text encoder with it if words are learned."""
        if self._learning is None:
            take_off_others(self.model)
            comfy.model_management.load_models_gpu([self.model], memory_required=memory_required)
        elif not self._prepared:
            dtype, checkpointing, words = self._learning
            models = [self.model, self.clip.patcher] if words else [self.model]
            for patcher in models:
                take_off_others(patcher)
            comfy.model_management.load_models_gpu(models, memory_required=EVERYTHING, force_full_load=True)
            self._changes.callback(setattr, self, "_prepared", False)
            self._prepared = True
            unet, text = unet_of(self.model), self.clip.cond_stage_model if words else nn.Identity()
            again = (lambda: self._reading) if checkpointing else None
            entered = differentiable if self.family.reads == "states" else differentiable_transformer
            self._changes.enter_context(entered(unet, text, dtype=dtype, again=again))

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """Restore the models before and after, so that ComfyUI may move them to make room for others."""
        self._changes.close()
        try:
            yield
        finally:
            self._changes.close()

    def _vae(self) -> VAE:
        if self.vae is None:
            raise BaseModelError("Pictures need a VAE. Connect the VAE that belongs to this model.")
        return self.vae
