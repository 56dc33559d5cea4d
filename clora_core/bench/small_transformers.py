"""Small diffusion transformers of the starter's world, one of each kind, in diffusers' classes of real families.

They read the starter's text encoder and make its latents, of which they know the 16 strongest directions. About one
million parameters each, flow matching. `pretrain_transformers.py` trains them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel, Lumina2Transformer2DModel, QwenImageTransformer2DModel
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from ..model.attach import Reading
from ..model.attachment import Attachment
from ..model.base import Conditioning, Schedule, fingerprint
from ..model.concept import ConceptToken
from ..model.families.blocks import Blocks, Layout
from ..model.families.cosmos import COSMOS
from ..model.families.family import Family
from ..model.families.qwen_image import QWEN_IMAGE
from ..model.families.starter import STARTER
from ..model.families.z_image import Z_IMAGE
from ..model.precision import Precision
from ..model.projections import Projection, Slot
from ..over_diffusers.base import open_base
from ..starter.layout import TOKENS

WEIGHTS = Path(__file__).parent / "weights"
BASIS = "latents.basis"  # in a network's file: its latents are this (16, 32) matrix times the starter's
CHANNELS, SIDE, PATCH, LEVELS = 16, 8, 2, 1000


@dataclass(frozen=True)
class Small:
    """A network. build: with random weights. run: network, latents (b, 16, 8, 8), σ (b,), states (b, tokens, width) →
    noise - latents.
    """

    family: Family
    build: Callable[[], nn.Module]
    run: Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def _cosmos() -> nn.Module:
    return CosmosTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=3,
        text_embed_dim=STARTER.text_width,
        adaln_lora_dim=24,
        max_size=(1, SIDE, SIDE),
        patch_size=(1, PATCH, PATCH),
        rope_scale=(1.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )


def _run_cosmos(network: Any, latents: Tensor, sigmas: Tensor, states: Tensor) -> Tensor:
    return network(latents.unsqueeze(2), sigmas, states, return_dict=False)[0].squeeze(2)


def _qwen_image() -> nn.Module:
    return QwenImageTransformer2DModel(
        in_channels=CHANNELS * PATCH**2,
        out_channels=CHANNELS,
        num_layers=3,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=STARTER.text_width,
        axes_dims_rope=(8, 12, 12),
    )


def _run_qwen_image(network: Any, latents: Tensor, sigmas: Tensor, states: Tensor) -> Tensor:
    sides = SIDE // PATCH
    patches = rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)
    shapes = [[(1, sides, sides)]] * len(latents)
    (output,) = network(patches, states, timestep=sigmas, img_shapes=shapes, return_dict=False)
    return rearrange(output, "b (h w) (c p q) -> b c (h p) (w q)", h=sides, p=PATCH, q=PATCH)


def _lumina() -> nn.Module:
    return Lumina2Transformer2DModel(
        sample_size=SIDE,
        patch_size=PATCH,
        in_channels=CHANNELS,
        hidden_size=96,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=3,
        multiple_of=32,
        ffn_dim_multiplier=0.5,
        axes_dim_rope=(8, 12, 12),
        axes_lens=(2 * TOKENS, SIDE, SIDE),
        cap_feat_dim=STARTER.text_width,
    )


def _run_lumina(network: Any, latents: Tensor, sigmas: Tensor, states: Tensor) -> Tensor:
    real = torch.ones(states.shape[:2], dtype=torch.bool)
    return -network(latents, 1 - sigmas, states, real, return_dict=False)[0]


def _like(family: Family, layout: Mapping[str, tuple[Any, ...]] | None = None) -> Family:
    """The family with the starter's text and world, in diffusers' layout."""
    structure = family.structure
    assert isinstance(structure, Blocks)
    return replace(
        STARTER,
        name=f"small-{family.name}",
        title=f"small {family.title}",
        structure=structure if layout is None else replace(structure, layouts=(Layout(dict(layout)),)),
        latent_channels=CHANNELS,
        resolutions={"flow": STARTER.resolutions["v_prediction"]},
        reads=family.reads,
        least_side=SIDE,
    )


SMALL: Mapping[str, Small] = {
    "cosmos-predict2": Small(
        _like(
            COSMOS,
            {"transformer_blocks.{}.attn2.to_k": ("key",), "transformer_blocks.{}.attn2.to_v": ("value",)},
        ),
        _cosmos,
        _run_cosmos,
    ),
    "qwen-image": Small(_like(QWEN_IMAGE), _qwen_image, _run_qwen_image),
    "lumina": Small(
        _like(Z_IMAGE, {"layers.{}.attn.to_k": ("key",), "layers.{}.attn.to_v": ("value",)}), _lumina, _run_lumina
    ),
}


def open_small(name: str) -> "SmallBase":
    """The network of that name with its trained weights."""
    tensors = {key: value.float() for key, value in load_file(WEIGHTS / f"{name}.safetensors").items()}
    basis = tensors.pop(BASIS)
    network = SMALL[name].build()
    network.load_state_dict(tensors)
    return SmallBase(SMALL[name], network, basis)


class SmallBase:
    """One of the networks with the starter's text encoder and autoencoder, as a frozen `Base`, which explains it all.

    basis: (16, 32), orthogonal rows.
    """

    def __init__(self, small: Small, network: nn.Module, basis: Tensor) -> None:
        self.small, self.network, self.basis = small, network.eval().requires_grad_(False), basis
        self.starter = open_base("starter")
        self.family = small.family
        self.slots: Mapping[Projection, Slot] = small_slots(small, network)
        self.fingerprint = fingerprint(self.family, self.slots)
        self.schedule = Schedule(torch.arange(1, LEVELS + 1) / LEVELS, "flow")
        self.device, self.clip_skip = torch.device("cpu"), self.family.clip_skip
        self.attachments: list[Attachment] = []

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        return CHANNELS, *self.starter.latent_shape(height, width)[1:]

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", self.basis, self.starter.encode_pictures(pictures))

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.starter.decode_latents(torch.einsum("ck,nkhw->nchw", self.basis.pinverse(), latents))

    def vocabulary(self) -> dict[str, Tensor]:
        return self.starter.vocabulary()

    def word_vectors(self, word: str) -> dict[str, Tensor]:
        return self.starter.word_vectors(word)

    def encode_prompts(self, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> Conditioning:
        return self.starter.encode_prompts(prompts, tokens)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        with Reading.of_prompts(self, conditioning):
            return self.small.run(self.network, noisy, self.schedule.levels[timesteps], conditioning.states)

    @contextmanager
    def learning(self, *, precision: Precision, checkpointing: bool, words: bool = True) -> Iterator[torch.dtype]:
        """Everything is frozen, in float32, at any time."""
        yield torch.float32


def small_slots(small: Small, network: nn.Module) -> dict[Projection, Slot]:
    modules = dict(network.named_modules())
    places = small.family.structure.find(modules, lambda name: modules[name].get_parameter("weight").shape)
    return {
        projection: Slot(modules[place.module], place.first_row, projection.shape[0])
        for projection, place in sorted(places.items())
    }
