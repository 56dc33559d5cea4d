"""The seam: all that the engine asks of a model.

`over_diffusers/base.py` implements it over diffusers and transformers, `nodes/host/base.py` over a running ComfyUI.
Everything else works with either.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import BaseModelError
from .attachment import Attachment
from .concept import ConceptToken
from .families import family_of
from .families.family import Family, Prediction
from .precision import Precision
from .projections import Projection


@dataclass(frozen=True)
class Fingerprint:
    """Which base a museum belongs to: its family's name and a hash of its key and value projections."""

    family: str
    digest: str

    def __str__(self) -> str:
        return f"{self.family} · {self.digest[:8]}"


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise that the model was trained with: ᾱ of each timestep (T,), float32, and what the model predicts."""

    alphas_cumprod: Tensor
    prediction: Prediction

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1 - ᾱ) at the timesteps, (b, 1, 1, 1) each, float32."""
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ·latents + √(1 - ᾱ)·noise."""
        signal, noisy = self.coefficients(timesteps)
        return signal * latents + noisy * noise

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The latents that the model's prediction stands for: the way back from `noised`."""
        signal, noise = self.coefficients(timesteps)
        if self.prediction == "epsilon":
            return (noisy - noise * prediction) / signal
        return signal * noisy - noise * prediction

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict: the noise, or the velocity √ᾱ·noise - √(1 - ᾱ)·latents."""
        if self.prediction == "epsilon":
            return noise
        signal, noisy = self.coefficients(timesteps)
        return signal * noise - noisy * latents


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A batch of encoded prompts.

    states: (b, tokens, width), or (b, tokens, layers · width) if some word has a vector per cross-attention
    (`layers.py`). pooled: (b, width), for families that read it. places: for each learned word that stands in any of
    the prompts, where it does, (b, tokens) bool. This is all that a model knows of a prompt, and the one way by which
    gates learn where their words stand.
    """

    states: Tensor
    pooled: Tensor | None = None
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: Tensor | slice) -> "Conditioning":
        def chosen(values: Tensor) -> Tensor:
            # not values[rows]: where rows repeat, its backward pass adds up in another order every time
            return values[rows] if isinstance(rows, slice) else values.index_select(0, rows.to(values.device))

        pooled = None if self.pooled is None else chosen(self.pooled)
        return Conditioning(chosen(self.states), pooled, {word: chosen(where) for word, where in self.places.items()})


class Base(Protocol):
    """A frozen text-to-image model."""

    fingerprint: Fingerprint
    family: Family
    modules: Mapping[Projection, nn.Module]  # the modules whose output a delta is added to
    schedule: Schedule
    device: torch.device
    attachments: list[Attachment]  # the deltas that `predict` adds; `attach.attached` puts them here and takes them off

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) in [-1, 1] to latents (n, c, h', w') as the UNet sees them, float32 on the CPU."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """The way back: pictures (n, 3, h, w) in [-1, 1], float32 on the CPU."""
        ...

    def vocabulary(self) -> Mapping[str, Tensor]:
        """The frozen word table of each text encoder: its name → (words, width)."""
        ...

    def word_vectors(self, word: str) -> Mapping[str, Tensor]:
        """An existing word's vectors: the encoder's name → (tokens, width). Raises ConceptError if it is unknown."""
        ...

    def encode_prompts(self, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        """Prompts in which the tokens' words may stand. Gradients reach the tokens' vectors."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's raw prediction for latents noised as `schedule` says; gradients flow. float32."""
        ...

    def learning(self, *, precision: Precision, checkpointing: bool) -> AbstractContextManager[torch.dtype]:
        """While entered, the model can be differentiated through, in that precision; afterwards all is as it was.

        Gives the dtype that the UNet computes in.
        """
        ...


def fingerprint(modules: Mapping[Projection, nn.Module]) -> Fingerprint:
    """The fingerprint of a base, the same for its float16 and its float32 copy.

    Only each projection's first row goes in, so that it takes no time at any size.
    """
    digest = hashlib.sha256()
    for projection, module in modules.items():
        row = module.get_parameter("weight").detach()[0].to("cpu", torch.float16)
        digest.update(f"{projection.path} {projection.shape}".encode())
        digest.update(row.numpy().tobytes())
    return Fingerprint(family_of(modules).name, digest.hexdigest())


def check_parts(family: Family, encoders: Mapping[str, int], *, reads: int, makes: int | None) -> None:
    """Raise BaseModelError unless these parts make a text-to-image model of the family.

    encoders: each text encoder's name → the width of its words. reads, makes: the channels of the latents that the
    network reads and that the autoencoder makes; None for no autoencoder.
    """
    if dict(encoders) != dict(family.encoders):
        raise BaseModelError(
            f"The text encoders (name: width) are {dict(encoders)}; a {family.title} model has "
            f"{dict(family.encoders)}. Use the text encoders (CLIP) that belong to this model."
        )
    if reads != family.latent_channels:
        raise BaseModelError(
            f"The network reads {reads} channels, but a {family.title} latent has {family.latent_channels}: this is an "
            "inpainting or image-conditioned variant. Use the text-to-image model that it comes from."
        )
    if makes is not None and makes != family.latent_channels:
        raise BaseModelError(
            f"The VAE makes latents of {makes} channels, but a {family.title} model reads {family.latent_channels}. "
            "Use the VAE that belongs to this model."
        )


def latent_sides(height: int, width: int, factor: int) -> tuple[int, int]:
    """(h', w') of the latents of pictures of that size, where a latent's side stands for `factor` pixels.

    Raises BaseModelError for sides that are no multiples of it.
    """
    if height < 1 or width < 1 or height % factor or width % factor:
        raise BaseModelError(
            f"Pictures of {height}×{width} pixels do not fit this model. Choose sides that are multiples of {factor}."
        )
    return height // factor, width // factor


def pooled_of(conditioning: Conditioning) -> Tensor:
    """The pooled text vectors, (b, width), for a model that needs them. Raises BaseModelError without."""
    if conditioning.pooled is None:
        raise BaseModelError("This model needs pooled text vectors; encode its prompts with its own text encoders.")
    return conditioning.pooled
