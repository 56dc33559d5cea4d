"""A model family: everything that this project needs to know about it, in one value."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ..captions import everyday_captions
from ..numbers import Numbers
from ..projections import Place, Projection, Role

Prediction = Literal["epsilon", "v_prediction", "flow"]
# what projections read: the text states, a function of the prompt, a stream of text that the picture flows into, or one
# that text and picture share
Reads = Literal["states", "function", "stream", "shared"]


def ordinary_keys(stem: str) -> tuple[str, str, str]:
    """The names of up, down and alpha in an ordinary LoRA file."""
    return f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"


class Structure(Protocol):
    """Where networks of one architecture have their projections, and what other programs call them."""

    def find(self, modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> Mapping[Projection, Place]:
        """The projections among a network's modules, in any layout; none if it is another architecture.

        modules: their names. shape: module name → the shape of its weight.
        """
        ...

    def role(self, path: str) -> Role | None:
        """The role of the projection with that path; None if a projection cannot have it."""
        ...

    def lora_key(self, path: str) -> str:
        """The key stem of the projection with that path in ordinary LoRA files."""
        ...

    def diffusers_keys(self, path: str) -> tuple[str, ...]:
        """The names of the projection's up, down and (UNets) alpha for diffusers; none if it loads no such LoRA."""
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
    """A model belongs to the family whose structure fits all of its projections, and in a UNet the text width."""

    name: str  # in museum files, so it never changes
    title: str  # for people
    structure: Structure
    text_width: int  # of the text states
    encoders: Mapping[str, int]  # ComfyUI's name of each text encoder → its width
    latent_channels: int
    resolutions: Mapping[Prediction, int]  # prediction, the default first → side of the training pictures, px
    published: Published
    kept_bytes: int  # activations per latent pixel and picture that 16-bit training keeps for the backward pass
    checkpointed: float  # the share of that memory that is still needed with gradient checkpointing
    reads: Reads = "states"  # what the projections read: see `Reads`
    least_side: int = 16  # of latents that the network runs on, in latent pixels
    frames: bool = False  # latents have an axis for frames, (c, 1, h, w)
    penultimate: bool = False  # the network reads the text encoders' states before their last layer
    clip_skip: int = 1  # the layer that it reads, counted from the end of the text encoders as published
    pooled: bool = False  # it also reads the pooled vector of the last text encoder
    side_px: int = 64  # sides of training pictures are multiples of this, so that the network can halve them
    guidance: float = 7.5  # the default for sampling
    numbers: Numbers = field(default_factory=Numbers)  # what it learns well with
    captions: Sequence[str] = field(default_factory=everyday_captions)  # everyday prompts in its vocabulary
    needs: Sequence[str] = ()  # modules that tell it apart from families with the same projections
    lacks: Sequence[str] = ()  # modules that only those have
    checkpoint: Checkpoint | None = None  # None: single files open only in ComfyUI

    def has(self, projections: Collection[Projection]) -> bool:
        """Whether all of these can be its projections."""
        return bool(projections) and all(
            self.structure.role(projection.path) == projection.role
            and (self.reads != "states" or projection.shape[1] == self.text_width)
            for projection in projections
        )

    def marked(self, modules: Collection[str]) -> bool:
        """Whether a network with these modules has those that the family needs, and none that it lacks."""
        return set(self.needs) <= set(modules) and not set(self.lacks) & set(modules)

    def latent_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of a picture's latents: (c, rows, columns), with a frame (c, 1, rows, columns)."""
        return self.latent_channels, *((1,) if self.frames else ()), rows, columns

    def resolution_px(self, prediction: Prediction) -> int:
        """The side of the training pictures of models with that prediction."""
        return self.resolutions.get(prediction, next(iter(self.resolutions.values())))

    def lora_key(self, projection: Projection) -> str:
        """The key stem of this projection in ordinary LoRA files."""
        return self.structure.lora_key(projection.path)
