"""The methods that benchmarks compare: a recipe's name, or a change of it such as `c-lora*10+noun`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import cast

from ..errors import RecipeError
from ..recipe import RECIPES, Recipe, guarding
from ..starter.course import starter_recipe
from ..starter.exam import Wording

JOINT = "joint"  # all at once; no recipe, since a recipe learns one concept
WORDED: Mapping[Wording, str] = {"noun": "identities", "first": "styles"}
METHOD = re.compile(
    r"(?P<name>[a-z-]+?)(?:\*(?P<factor>[\d.]+))?(?:@(?P<rate>[\d.]+))?(?:\+(?P<wording>noun|first))?"
    r"(?:-without-(?P<term>[a-z_]+))?"
)


def varied(method: str, *, seed: int, steps: int | None = None) -> tuple[Recipe, Wording]:
    """The recipe that a method's name stands for on the starter model, and how its prompts are worded."""
    if method == JOINT:
        return starter_recipe("sequential", seed=seed, **({"steps": steps} if steps else {})), "usual"
    match = METHOD.fullmatch(method)
    name = match["name"] if match else method
    if match is None or name not in RECIPES:
        raise RecipeError(f"There is no method '{method}'. Take a recipe: {', '.join(RECIPES)}; see --help.")
    recipe = starter_recipe(name, seed=seed, **({"steps": steps} if steps else {}))
    if match["factor"]:
        recipe = guarding(recipe, float(match["factor"]))
    if match["rate"]:
        recipe = dataclasses.replace(recipe, learning_rate=float(match["rate"]))
    if match["term"]:
        left = tuple(r for r in recipe.regularizers if r.name != match["term"])
        if len(left) == len(recipe.regularizers):
            known = ", ".join(r.name for r in recipe.regularizers)
            raise RecipeError(f"The recipe '{name}' has no term '{match['term']}'. It has: {known or 'none'}.")
        recipe = dataclasses.replace(recipe, regularizers=left)
    return recipe, cast(Wording, match["wording"] or "usual")


def check_method(method: str, track: str) -> None:
    """Raise RecipeError for a name that stands for nothing, or for a wording that these subjects do not have."""
    _, wording = varied(method, seed=0)
    if wording != "usual" and WORDED[wording] != track:
        raise RecipeError(f"'{method}': +{wording} is a wording of {WORDED[wording]}; the subjects are {track}.")
