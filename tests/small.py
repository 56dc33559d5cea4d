"""Small things to learn with: a starter model of few channels with untrained weights, concepts of random pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from clora_core.learning.learn import learn
from clora_core.method.recipe import Recipe
from clora_core.method.regularizers import SelfRegularization, elastic_weights
from clora_core.method.step import Past, Setting, Step
from clora_core.model import sampling
from clora_core.model.base import Base, Conditioning, Prediction
from clora_core.model.concept import Concept
from clora_core.model.low_rank import LowRank
from clora_core.model.moments import preserved_moments
from clora_core.model.projections import Projection
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase, starter_parts
from clora_core.starter.layout import LATENT_CHANNELS
from clora_core.starter.model import Starter, build_scheduler, build_text_encoder, build_tokenizer, build_vae

LATENT_SHAPE = (LATENT_CHANNELS, 8, 8)


def small_base(prediction: Prediction = "v_prediction", *, seed: int = 0) -> DiffusersBase:
    """The small starter as the engine sees it."""
    return base_of(small_starter(prediction, seed=seed))


def base_of(starter: Starter) -> DiffusersBase:
    return DiffusersBase(starter_parts(starter))


def small_starter(prediction: Prediction = "v_prediction", *, seed: int = 0) -> Starter:
    """The starter model's architecture with half of its channels and untrained weights."""
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        starter = Starter(_small_unet(), build_vae(), build_text_encoder(), build_tokenizer(), scheduler)
    for module in (starter.unet, starter.vae, starter.text_encoder):
        module.eval().requires_grad_(False)
    return starter


def _small_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def small_concept(word: str = "<one>", *, count: int = 4, seed: int = 0, **more: object) -> Concept:
    """Random pictures of 64×64."""
    pictures = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Concept(word, pictures, **more)


def pixels_of(concept: Concept) -> Tensor:
    """(n, 3, height, width) of a concept whose pictures have one size."""
    return torch.stack([picture.read() for picture in concept.pictures])


def short(*regularizers: object, **numbers: object) -> Recipe:
    """A recipe of a few small steps with rates that move the deltas visibly."""
    quick = {"rank": 2, "steps": 3, "batch_size": 2, "learning_rate": 1e-2, "token_learning_rate": 1e-2}
    return Recipe("short", regularizers, **{**quick, **numbers})


C_LORA = SelfRegularization()


def taught(
    base: Base, museum: Museum, concept: Concept, recipe: Recipe, *, companions: Sequence[Concept] = (), **more: Any
) -> Museum:
    """The museum with one more exhibit, or with all concepts that are learned together."""
    return museum.with_exhibits(*learn(base, museum, [*companions, concept], recipe, **more))


def museum_of(base: Base, *words: str, recipe: Recipe | None = None) -> Museum:
    """The words, learned one after another."""
    museum = Museum(base.fingerprint)
    for index, word in enumerate(words):
        museum = taught(base, museum, small_concept(word, seed=index), recipe or short(C_LORA))
    return museum


def random_deltas(base: Base, *, rank: int = 2, size: float = 0.1, seed: int = 0) -> dict[Projection, LowRank]:
    """Deltas of random numbers for every projection of the base."""
    rng = torch.Generator().manual_seed(seed)
    return {
        projection: LowRank(
            size * torch.randn(projection.shape[0], rank, generator=rng),
            torch.randn(rank, projection.shape[1], generator=rng),
        )
        for projection in base.slots
    }


def predictions(base: Base, prompt: str = "a photo of a cat") -> Tensor:
    """The predictions for two fixed noisy latents."""
    latents = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        conditioning = base.encode_prompts([prompt, ""], [])
        return base.predict(latents, torch.tensor([20, 700]), conditioning)


def tensors_of(museum: Museum) -> dict[str, Tensor]:
    """Every tensor of a museum by name."""
    named = {}
    for exhibit in museum.exhibits:
        named |= {f"{exhibit.word}.{encoder}": vectors for encoder, vectors in exhibit.token.vectors.items()}
        for projection, delta in exhibit.deltas.items():
            named |= {f"{exhibit.word}.{projection.path}.up": delta.up}
            named |= {f"{exhibit.word}.{projection.path}.down": delta.down}
    return named


def bits(named: dict[str, Tensor]) -> dict[str, bytes]:
    """Tensors as bytes, so that equality is equality of every bit."""
    return {
        name: value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, value in named.items()
    }


def same_bits(one: Museum, other: Museum) -> bool:
    return bits(tensors_of(one)) == bits(tensors_of(other))


def setting_with(
    past: Past, *, base: Base | None = None, reference_loss: float = 1.0, latents: Tensor | None = None
) -> Setting:
    """A setting with dummy values for everything that is not given."""
    latents = torch.zeros(1, *LATENT_SHAPE) if latents is None else latents
    return Setting(
        base=base,  # type: ignore[arg-type]
        past=past,
        latents=[latents],
        as_before=nullcontext,
        measure_reference_loss=lambda: reference_loss,
        measure_moments=lambda: preserved_moments(base, past.prompts, past.tokens),  # type: ignore[arg-type]
        batch_size=16,
    )


def step_with(deltas: dict[Projection, LowRank]) -> Step:
    """A step with dummy values for everything but the deltas."""
    latents = torch.zeros(1, 1, 1, 1)
    nothing = Conditioning(torch.zeros(1, 1, 1))
    return Step(0, latents, latents, torch.zeros(1, dtype=torch.long), nothing, latents, latents, deltas)


@contextmanager
def quick_fisher_information() -> Iterator[None]:
    """Of few pictures and sampling steps: how good it is, tests/method/test_elastic_weights.py asks."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("pictures", 2), ("draws", 4)):
            patched.setitem(elastic_weights.fisher_information.__kwdefaults__, name, value)
        patched.setattr(sampling, "Sampling", partial(sampling.Sampling, 2))
        yield
