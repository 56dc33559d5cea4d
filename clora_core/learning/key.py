"""A fingerprint of everything that the result of a learning depends on, to recognize the same learning again."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

from torch import Tensor

from ..method.recipe import Recipe
from ..model.base import Base
from ..model.concept import Concept
from ..museum.museum import Museum
from ..seeds import bytes_of

VERSION = 2  # of what learns: raise it whenever the same inputs give another result


def learning_key(base: Base, museum: Museum, concepts: Sequence[Concept], recipe: Recipe) -> str:
    """SHA-256 of base, museum, concepts, pictures, numbers and this version of the engine, in hexadecimal.

    The base is represented by its fingerprint, its schedule and its family's everyday captions. The steps of an
    open-ended recipe are left out: a longer learning can resume from the state of a shorter one. So is checkpointing,
    which only affects rounding.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(bytes_of(value))
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())

    numbers = dataclasses.replace(recipe, checkpointing=False).to_json()
    if recipe.open_ended:
        del numbers["steps"]
    add([VERSION, museum.base.family, museum.base.digest, base.schedule.prediction, numbers])
    add(list(base.family.captions))
    if base.fingerprint != museum.base:
        add(base.fingerprint.digest)
    add(base.schedule.levels)
    if base.clip_skip != base.family.clip_skip:
        add(["clip skip", base.clip_skip])
    for exhibit in museum.exhibits:
        add([exhibit.word, exhibit.kind, exhibit.prompt, exhibit.recipe.to_json(), exhibit.strength, exhibit.digest])
    for concept in concepts:
        add([concept.word, concept.kind, concept.prompts(), concept.vectors, concept.start, concept.token_seed])
        if concept.captions:
            add(concept.prompt)  # it is stored in the exhibit, and later concepts preserve it
        if recipe.caption_lines:
            add([concept.lines(caption) for caption in concept.captions])
        add([[picture.digest, *picture.original, *picture.crop] for picture in concept.pictures])
    return digest.hexdigest()
