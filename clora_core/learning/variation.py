"""Captions that vary between draws: lines, shuffled tags and dropout, as in trainers for tagged pictures.

A draw depends on the recipe's seed, the number of the batch and the place in it, so a resumed learning draws the same.
"""

from collections.abc import Sequence

import torch

from ..errors import ConceptError
from ..method.recipe import Recipe
from ..model.concept import Concept, mentions
from ..seeds import seeded


def varies(recipe: Recipe) -> bool:
    """Whether captions can vary between draws."""
    return recipe.shuffle_tags or recipe.caption_lines or bool(recipe.tag_dropout or recipe.caption_dropout)


def check_lines(concept: Concept, recipe: Recipe) -> None:
    """Raise ConceptError for a line that is used alone but does not mention the word."""
    for caption in concept.captions if recipe.caption_lines else ():
        for line in concept.lines(caption):
            if not mentions(line, concept.word):
                raise ConceptError(
                    f"The line '{line:.100}' of a caption does not mention '{concept.word}'. With one caption per "
                    f"line, write {{word}} in every line."
                )


def possible_prompts(concept: Concept, recipe: Recipe) -> list[str]:
    """All prompts that a draw can give, unless tags are shuffled or dropped; the same one may come several times."""
    lines = [line for caption in concept.captions for line in concept.lines(caption)] if recipe.caption_lines else []
    return [*concept.prompts(), *lines, *([concept.prompt] if recipe.caption_dropout else [])]


def varied_prompts(
    concept: Concept, recipe: Recipe, number: int, pictures: Sequence[int], words: Sequence[str]
) -> list[str]:
    """The prompts of these pictures in batch `number`. words: tags with these words are never dropped."""
    plain = concept.prompts()
    return [
        _varied(concept, recipe, plain[picture], picture, seeded("caption", recipe.seed, number, place), words)
        for place, picture in enumerate(pictures)
    ]


def _varied(
    concept: Concept, recipe: Recipe, plain: str, picture: int, rng: torch.Generator, words: Sequence[str]
) -> str:
    if _chance(recipe.caption_dropout, rng):
        return concept.prompt
    if recipe.caption_lines and concept.captions and (lines := concept.lines(concept.captions[picture])):
        plain = lines[int(torch.randint(len(lines), (), generator=rng))]
    if not recipe.shuffle_tags and not recipe.tag_dropout:
        return plain
    tags = [tag.strip() for tag in plain.split(",") if tag.strip()]
    first, others = tags[: recipe.keep_tokens], tags[recipe.keep_tokens :]
    others = [tag for tag in others if not _chance(recipe.tag_dropout, rng) or any(mentions(tag, w) for w in words)]
    if recipe.shuffle_tags:
        others = [others[place] for place in torch.randperm(len(others), generator=rng).tolist()]
    return ", ".join([*first, *others])


def _chance(share: float, rng: torch.Generator) -> bool:
    return share > 0 and float(torch.rand((), generator=rng)) < share
