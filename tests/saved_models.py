"""A small model of each family in three forms, made once for all tests, and helpers."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from clora_core.model.base import Conditioning
from clora_core.model.concept import ConceptToken
from clora_core.over_diffusers.base import DiffusersBase, open_base
from tests.families import original_layout, small_pipeline, tokenizer_folder


@dataclass(frozen=True, eq=False)
class Saved:
    """As diffusers made it, as a folder, as a single file; and a folder with a tokenizer. They go with this object."""

    family: str
    pipeline: DiffusionPipeline
    place: tempfile.TemporaryDirectory[str]

    @property
    def folder(self) -> Path:
        return Path(self.place.name, "folder")

    @property
    def file(self) -> Path:
        return Path(self.place.name, "model.safetensors")

    @property
    def tokenizer(self) -> Path:
        return Path(self.place.name, "words")

    def tensors(self) -> dict[str, Tensor]:
        """The single file's tensors."""
        return load_file(self.file)

    def open_file(self, **options: object) -> DiffusersBase:
        return open_base(self.file, tokenizer=self.tokenizer, **options)  # type: ignore[arg-type]


@functools.cache
def saved_model(family: str) -> Saved:
    saved = Saved(family, small_pipeline(family), tempfile.TemporaryDirectory())
    saved.pipeline.save_pretrained(saved.folder)
    save_file(original_layout(saved.pipeline, family), saved.file)
    tokenizer_folder(saved.tokenizer)
    return saved


@functools.cache
def opened(family: str) -> DiffusersBase:
    """The base in the folder. Tests must not change it."""
    return open_base(saved_model(family).folder)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def word_like(base: DiffusersBase, known: str, *, word: str = "<x>") -> ConceptToken:
    """A learnable word that starts as a known one."""
    return ConceptToken(word, {name: value[None].requires_grad_() for name, value in base.word_vectors(known).items()})


def prediction_of(base: DiffusersBase, conditioning: Conditioning) -> Tensor:
    """Its predictions for fixed noisy latents, one per prompt."""
    count = len(conditioning.states)
    noisy = random(count, *base.latent_shape(64, 64))
    return base.predict(noisy, torch.arange(count) * 300 + 7, conditioning)


def same(one: Tensor | None, other: Tensor | None) -> None:
    assert one is not None and other is not None
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
