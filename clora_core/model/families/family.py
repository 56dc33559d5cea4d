"""A family of models: all that this project has to know of it beforehand, in one value.

What later families need has its place here. Projections that do not read the text states get their width from a field
beside `text_width`; a model that predicts a flow is another `Prediction` (and another `Schedule` in `model/base.py`);
latents of five dimensions are a field beside `latent_channels`. Parts of fused weights: see `Projection`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..captions import everyday_captions
from ..projections import Projection, Role

Prediction = Literal["epsilon", "v_prediction"]


class Structure(Protocol):
    """Where networks of one build have their projections, and what these are called elsewhere."""

    def find(self, modules: Iterable[str]) -> Mapping[str, tuple[str, Role]]:
        """Out of the names of a network's modules, in any layout: those of projections → their path and role."""
        ...

    def role(self, path: str) -> Role | None:
        """The role of the projection with that path; None if there can be none."""
        ...

    def lora_path(self, path: str) -> str:
        """The path that kohya's trainer writes, before its dots become underscores."""
        ...

    def spelled(self, name: str) -> tuple[str, str] | None:
        """The path that a name in others' LoRA files begins with, and the rest of the name; None if there is none."""
        ...


@dataclass(frozen=True)
class Published:
    """What LoRA managers call the family: kohya's base model version, and ModelSpec's facts."""

    version: str
    architecture: str
    implementation: str = "diffusers"
    v2: bool = False  # kohya's `ss_v2`


@dataclass(frozen=True)
class StoredEncoder:
    """A text encoder in a single file. prefix: of its tensors' names."""

    prefix: str
    open_clip: bool = False  # named and padded as OpenCLIP does it, not as transformers
    layers: int | None = None  # how many of its layers are used, where not all


@dataclass(frozen=True)
class Checkpoint:
    """What a single file in the original (ldm) layout does not say of itself, for opening it without ComfyUI."""

    encoders: Mapping[str, StoredEncoder]
    scaling_factor: float  # latents are what the autoencoder gives, times this
    heads: int | None = None  # of the UNet's attention at every width; None: one for each 64 channels
    velocity_deviation: float | None = None  # above it, the last attention's first norm tells of v_prediction


@dataclass(frozen=True)
class Family:
    """A model belongs to the family whose structure has its projections by name, and whose text width these read."""

    name: str  # in museum files, for ever
    title: str  # for people
    structure: Structure
    text_width: int  # of the text states, which all projections read
    encoders: Mapping[str, int]  # ComfyUI's name of each text encoder → the width of its words
    latent_channels: int
    resolutions: Mapping[Prediction, int]  # what models predict, the usual first → side of their training pictures, px
    published: Published
    kept_bytes: int  # per latent pixel and picture, that learning deltas and words keeps in 16 bits for going backward
    checkpointed: float  # the share of it that is still kept, or made again for one block, with checkpointing
    penultimate: bool = False  # the network reads the text encoders' states before their last layer
    pooled: bool = False  # it also reads the pooled vector of the last encoder
    guidance: float = 7.5  # that its models are usually sampled with
    captions: Sequence[str] = field(default_factory=everyday_captions)  # everyday prompts in words that it knows
    checkpoint: Checkpoint | None = None  # None where single files are not opened without ComfyUI

    def has(self, projections: Collection[Projection]) -> bool:
        """Whether these can all be its projections."""
        return bool(projections) and all(
            self.structure.role(projection.path) == projection.role and projection.shape[1] == self.text_width
            for projection in projections
        )

    def resolution_px(self, prediction: Prediction) -> int:
        """The side of the pictures that its models with that prediction were trained on."""
        return self.resolutions.get(prediction, next(iter(self.resolutions.values())))

    def lora_key(self, projection: Projection) -> str:
        """The stem under which ordinary LoRA files keep this projection, as kohya's trainer writes it."""
        return "lora_unet_" + self.structure.lora_path(projection.path).replace(".", "_")
