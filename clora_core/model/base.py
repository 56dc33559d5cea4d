"""The interface between the engine and a model.

`over_diffusers/base.py` implements it with diffusers and transformers, `nodes/host/base.py` in a running ComfyUI.
Everything else works with either.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BaseModelError
from .attachment import Attachment
from .concept import ConceptToken
from .families.family import Family, Prediction
from .precision import Precision
from .projections import Projection, Slot

FIRST_DIGITS = 64  # of a SHA-256


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Identifies the base of a museum: the name of its family, and hashes of its key and value projections.

    digest: a hash of the first rows, then one of all rows, in hexadecimal; in museums of earlier versions only the
    first, which is then all that is compared.
    """

    family: str
    digest: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint) or self.family != other.family:
            return False
        shorter, longer = sorted((self.digest, other.digest), key=len)
        return shorter == longer or (len(shorter) == FIRST_DIGITS and longer.startswith(shorter))

    def __hash__(self) -> int:
        return hash(self.family)

    def __str__(self) -> str:
        return f"{self.family} · {self.digest[:8]}"


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule that the model was trained with, and what the model predicts.

    levels: (T,) float32, how noisy each timestep is: ᾱ, or σ of flow matching. A noisy latent is

        √ᾱ·latents + √(1 - ᾱ)·noise        or        (1 - σ)·latents + σ·noise
    """

    levels: Tensor
    prediction: Prediction

    def coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the latents and of the noise there is at the timesteps, float32. They broadcast over `like`."""
        level = self.levels.to(timesteps.device)[timesteps].view(-1, *[1] * (like.ndim - 1))
        return (1 - level, level) if self.prediction == "flow" else (level.sqrt(), (1 - level).sqrt())

    def signal(self, timesteps: Tensor) -> Tensor:
        """ᾱ or 1 - σ at the timesteps, (b,)."""
        level = self.levels.to(timesteps.device)[timesteps]
        return 1 - level if self.prediction == "flow" else level

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at the timesteps, (b,): ᾱ/(1 - ᾱ), or ((1 - σ)/σ)²."""
        signal = self.signal(timesteps)
        ratio = signal / (1 - signal)
        return ratio.square() if self.prediction == "flow" else ratio

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents."""
        signal, noisy = self.coefficients(timesteps, latents)
        return signal * latents + noisy * noise

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction implies: the inverse of `noised`."""
        signal, noise = self.coefficients(timesteps, noisy)
        if self.prediction == "epsilon":
            return (noisy - noise * prediction) / signal
        if self.prediction == "flow":
            return noisy - noise * prediction
        return signal * noisy - noise * prediction

    def noise(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that a prediction implies."""
        signal, noise = self.coefficients(timesteps, noisy)
        if self.prediction == "epsilon":
            return prediction
        if self.prediction == "flow":
            return noisy + signal * prediction
        return signal * prediction + noise * noisy

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict: the noise, the velocity √ᾱ·noise - √(1 - ᾱ)·latents, or noise - latents."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - latents
        signal, noisy = self.coefficients(timesteps, latents)
        return signal * noise - noisy * latents


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A batch of encoded prompts.

    states: (b, tokens, width), or (b, tokens, layers · width) if a word has a vector per cross-attention
    (`layers.py`). pooled: (b, width), for families that read it. places: each learned word in any of the prompts → its
    places, (b, tokens) bool; gates read them. sizes: SDXL's input for a picture's size, (b, 6) pixels: original
    height and width, rows and columns cut off at the top and left, height and width; None for that of the latents.
    lengths: how many tokens each prompt has, (b,) on the CPU; None if all have the same number (`chunks.py`). real:
    which tokens are not padding, (b, tokens) bool; None if the model does not pad. extras: for each prompt, other
    inputs of the network, which only the base reads.
    """

    states: Tensor
    pooled: Tensor | None = None
    places: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Tensor | None = None
    lengths: Tensor | None = None
    real: Tensor | None = None
    extras: Sequence[Mapping[str, object]] = ()

    def at_words(self) -> Tensor:
        """Where the learned words are, (b, tokens) bool."""
        found = torch.zeros(self.states.shape[:2], dtype=torch.bool, device=self.states.device)
        for mask in self.places.values():
            mask = mask[:, : found.shape[1]]
            found[:, : mask.shape[1]] |= mask.to(found.device)
        return found

    def to(self, device: torch.device) -> "Conditioning":
        """All tensors on that device, but for `lengths` and `extras`."""
        optional = (self.pooled, self.sizes, self.real)
        pooled, sizes, real = (None if value is None else value.to(device) for value in optional)
        places = {word: mask.to(device) for word, mask in self.places.items()}
        return replace(self, states=self.states.to(device), pooled=pooled, places=places, sizes=sizes, real=real)

    def __getitem__(self, rows: Tensor | slice) -> "Conditioning":
        def chosen(values: Tensor) -> Tensor:
            # not values[rows]: with repeated rows, its backward pass sums in a different order every time
            return values[rows] if isinstance(rows, slice) else values.index_select(0, rows.to(values.device))

        optional = (self.pooled, self.sizes, self.lengths, self.real)
        pooled, sizes, lengths, real = (None if value is None else chosen(value) for value in optional)
        places = {word: chosen(mask) for word, mask in self.places.items()}
        extras = self.extras
        if extras:
            extras = extras[rows] if isinstance(rows, slice) else [extras[row] for row in rows.tolist()]
        return Conditioning(chosen(self.states), pooled, places, sizes, lengths, real, extras)


class Frozen(Protocol):
    """A frozen network that deltas can be added to, whatever it is for."""

    fingerprint: Fingerprint
    slots: Mapping[Projection, Slot]  # the projections, to whose output a delta is added
    device: torch.device
    attachments: list[Attachment]  # the deltas that are added; `attach.attached` adds and removes them

    def learning(
        self, *, precision: Precision, checkpointing: bool, words: bool = True
    ) -> AbstractContextManager[torch.dtype]:
        """While entered, gradients flow through the model in that precision. On exit, everything is restored.

        words: whether gradients also flow through text encoders, if it has any; otherwise these need not stay loaded.
        Yields the dtype that the network computes in.
        """
        ...


class Base(Frozen, Protocol):
    """A frozen text-to-image model."""

    family: Family
    schedule: Schedule

    @property
    def clip_skip(self) -> int:
        """The layer of the text encoders whose states the UNet reads: 1 is the last, 2 the one before it."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(c, h', w') of the latents of pictures of this size in pixels, or (c, 1, h', w') where they have a frame."""
        ...

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Encode pictures (n, 3, h, w) in [-1, 1] as latents (n, c, h', w'), or (n, c, 1, h', w') where the model's
        have a frame, float32 on the CPU."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures (n, 3, h, w) in [-1, 1], float32 on the CPU."""
        ...

    def vocabulary(self) -> Mapping[str, Tensor]:
        """The frozen token embeddings of each text encoder: its name → (tokens, width)."""
        ...

    def word_vectors(self, word: str) -> Mapping[str, Tensor]:
        """An existing word's vectors: the encoder's name → (tokens, width). Raises ConceptError if it is unknown."""
        ...

    def encode_prompts(self, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        """Encode prompts, which may contain the tokens' words. Gradients reach the tokens' vectors."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's raw prediction for latents noised by `schedule`, float32. Gradients flow through it."""
        ...


def fingerprint(family: Family, slots: Mapping[Projection, Slot]) -> Fingerprint:
    """The fingerprint of a base, the same for float16 and float32 copies.

    Of all rows but the first, only sums are hashed, so it is fast at any size.
    """
    first, whole = hashlib.sha256(), hashlib.sha256()
    for projection, slot in slots.items():
        weight = slot.weight.to(torch.float16).contiguous()
        first.update(f"{projection.path} {projection.shape}".encode())
        first.update(weight[0].cpu().numpy().tobytes())
        whole.update(_sums(weight).cpu().numpy().tobytes())
    return Fingerprint(family.name, first.hexdigest() + whole.hexdigest())


def _sums(weight: Tensor) -> Tensor:
    """The sum of each row's bits, (rows,) int64; integers overflow in the same way everywhere. weight: float16."""
    at_once = 4 if weight.shape[1] % 4 == 0 else 1
    bits = weight.view(torch.int64 if at_once == 4 else torch.int16)
    return bits.sum(1, dtype=torch.int64)


def check_parts(family: Family, encoders: Mapping[str, int], *, reads: int, makes: int | None) -> None:
    """Raise BaseModelError unless these parts form a text-to-image model of the family.

    encoders: the name of each text encoder → its width. reads: the latent channels of the network's input. makes: the
    latent channels of the autoencoder; None if there is no autoencoder.
    """
    if dict(encoders) != dict(family.encoders):
        raise BaseModelError(
            f"The text encoders (name: width) are {dict(encoders)}; a {family.title} model has "
            f"{dict(family.encoders)}. Use the text encoders (CLIP) that belong to this model."
        )
    if reads != family.latent_channels:
        raise BaseModelError(
            f"The network reads {reads} channels, but a {family.title} latent has {family.latent_channels}: this is an "
            "inpainting or image-conditioned variant. Use the text-to-image model instead."
        )
    if makes is not None and makes != family.latent_channels:
        raise BaseModelError(
            f"The VAE makes latents of {makes} channels, but a {family.title} model reads {family.latent_channels}. "
            "Use the VAE that belongs to this model."
        )


def latent_sides(height: int, width: int, factor: int) -> tuple[int, int]:
    """(h', w') of the latents of pictures of that size. factor: pixels per latent pixel, along one side.

    Raises BaseModelError for sides that are not multiples of `factor`.
    """
    if height < 1 or width < 1 or height % factor or width % factor:
        raise BaseModelError(
            f"Pictures of {height}×{width} pixels do not fit this model. Choose sides that are multiples of {factor}."
        )
    return height // factor, width // factor


def pooled_of(conditioning: Conditioning) -> Tensor:
    """The pooled text vectors, (b, width). Raises BaseModelError if there are none."""
    if conditioning.pooled is None:
        raise BaseModelError(
            "This model needs pooled text vectors. Encode the prompts with the text encoders of this model."
        )
    return conditioning.pooled
