"""A model family: everything that this project needs to know about it, in one value.

How to extend it for later families: projections that do not read text states need another width beside `text_width`;
flow matching needs another `Prediction` (and another `Schedule` in `model/base.py`); latents with five dimensions need
a field beside `latent_channels`. For parts of fused weights, see `Projection`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..captions import everyday_captions
from ..projections import Projection, Role

Prediction = Literal["epsilon", "v_prediction"]


class Structure(Protocol):
    """Where networks of one architecture have their projections, and what other programs call them."""

    def find(self, modules: Iterable[str]) -> Mapping[str, tuple[str, Role]]:
        """Of the module names of a network, in any layout: the names of projections → their path and role."""
        ...

    def role(self, path: str) -> Role | None:
        """The role of the projection with that path; None if a projection cannot have it."""
        ...

    def lora_path(self, path: str) -> str:
        """The path that kohya's trainer writes, before it replaces dots by underscores."""
        ...

    def spelled(self, name: str) -> tuple[str, str] | None:
        """Split a name in another program's LoRA file into a projection's path and the rest; None if it has none."""
        ...


@dataclass(frozen=True)
class Published:
    """Names of the family in LoRA metadata: kohya's base model version, and ModelSpec's fields."""

    version: str
    architecture: str
    implementation: str = "diffusers"
    v2: bool = False  # kohya's `ss_v2`


@dataclass(frozen=True)
class StoredEncoder:
    """A text encoder in a single file. prefix: the prefix of its tensor names."""

    prefix: str
    open_clip: bool = False  # OpenCLIP's names and padding, not transformers'
    layers: int | None = None  # how many of its layers are used; None: all


@dataclass(frozen=True)
class Checkpoint:
    """Facts that a single file in the original (ldm) layout does not contain, for opening it without ComfyUI."""

    encoders: Mapping[str, StoredEncoder]
    scaling_factor: float  # latents are the autoencoder's output times this
    heads: int | None = None  # of the UNet's attention at every width; None: one for each 64 channels
    velocity_deviation: float | None = None  # if the last attention's first norm deviates more: v_prediction


@dataclass(frozen=True)
class Family:
    """A model belongs to the family whose structure and text width fit all of its projections."""

    name: str  # in museum files, so it never changes
    title: str  # for people
    structure: Structure
    text_width: int  # of the text states, which all projections read
    encoders: Mapping[str, int]  # ComfyUI's name of each text encoder → its width
    latent_channels: int
    resolutions: Mapping[Prediction, int]  # prediction, the default first → side of the training pictures, px
    published: Published
    kept_bytes: int  # activations per latent pixel and picture that 16-bit training keeps for the backward pass
    checkpointed: float  # the share of that memory that is still needed with gradient checkpointing
    penultimate: bool = False  # the network reads the text encoders' states before their last layer
    pooled: bool = False  # it also reads the pooled vector of the last text encoder
    side_px: int = 64  # sides of training pictures are multiples of this, so that the network can halve them
    guidance: float = 7.5  # the default for sampling
    captions: Sequence[str] = field(default_factory=everyday_captions)  # everyday prompts in its vocabulary
    checkpoint: Checkpoint | None = None  # None: single files open only in ComfyUI

    def has(self, projections: Collection[Projection]) -> bool:
        """Whether all of these can be its projections."""
        return bool(projections) and all(
            self.structure.role(projection.path) == projection.role and projection.shape[1] == self.text_width
            for projection in projections
        )

    def resolution_px(self, prediction: Prediction) -> int:
        """The side of the training pictures of models with that prediction."""
        return self.resolutions.get(prediction, next(iter(self.resolutions.values())))

    def lora_key(self, projection: Projection) -> str:
        """The key stem of this projection in ordinary LoRA files, as kohya's trainer writes it."""
        return "lora_unet_" + self.structure.lora_path(projection.path).replace(".", "_")
