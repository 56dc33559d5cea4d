"""A fingerprint of everything that decides what is learned, so that the same learning can be known again."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from ..method.recipe import Recipe
from ..model.base import Base
from ..model.concept import Concept
from ..museum.museum import Museum


def learning_key(base: Base, museum: Museum, concepts: Sequence[Concept], recipe: Recipe) -> str:
    """SHA-256 of base, museum, concepts, pictures and numbers, in hexadecimal.

    Of the base what its fingerprint knows, and its schedule.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())

    add([museum.base.family, museum.base.digest, base.schedule.prediction, recipe.to_json()])
    add(base.schedule.levels)
    if base.clip_skip != base.family.clip_skip:
        add(["clip skip", base.clip_skip])
    for exhibit in museum.exhibits:
        add([exhibit.word, exhibit.kind, exhibit.prompt, exhibit.recipe.to_json()])
        for vectors in exhibit.token.vectors.values():
            add(vectors)
        for projection, delta in exhibit.deltas.items():
            add(projection.path)
            add(delta.scaled(exhibit.strength).up)
            add(delta.down)
    for concept in concepts:
        add([concept.word, concept.kind, concept.prompts(), concept.vectors, concept.start, concept.token_seed])
        if concept.captions:
            add(concept.prompt)  # which stands in the exhibit, and is what later concepts leave alone
        if recipe.caption_lines:
            add([concept.lines(caption) for caption in concept.captions])
        add([[picture.digest, *picture.original, *picture.crop] for picture in concept.pictures])
    return digest.hexdigest()
