"""The methods that benchmarks compare: recipes by name, optionally modified, as in `c-lora*10+noun`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import cast

from ..errors import RecipeError
from ..method.recipe import BASELINES, RECIPES, Recipe, guarding
from ..starter.course import starter_recipe
from ..starter.exam import PHRASES, Wording

COMPARED = RECIPES | BASELINES
JOINT = "joint"  # all subjects at once; not a recipe, since a recipe learns one concept
LAYER_WISE, WORD_FIT = "layer_wise", "word_fit"  # can be left out like a regularizer
WORDED: Mapping[Wording, str] = {"first": "styles", **dict.fromkeys(("noun", *PHRASES), "identities")}
METHOD = re.compile(
    r"(?P<name>[a-z-]+?)(?:\*(?P<factor>[\d.]+))?(?:@(?P<rate>[\d.]+))?(?:\+(?P<wording>noun|first|unrelated|described))?"
    r"(?:-without-(?P<term>[a-z_]+))?"
)


def method_recipe(method: str, *, seed: int, steps: int | None = None) -> tuple[Recipe, Wording]:
    """A method's recipe for the starter model, and the wording of its prompts."""
    match = METHOD.fullmatch(method)
    name = "sequential" if is_joint(method) else match["name"] if match else method
    if match is None or name not in COMPARED:
        raise RecipeError(f"There is no method '{method}'. Choose a recipe: {', '.join(COMPARED)}; see --help.")
    recipe = starter_recipe(name, seed=seed, **({"steps": steps} if steps else {}))
    if match["factor"]:
        recipe = guarding(recipe, float(match["factor"]))
    if match["rate"]:
        rate = "learning_rate" if recipe.rank else "token_learning_rate"
        recipe = dataclasses.replace(recipe, **{rate: float(match["rate"])})
    if match["term"]:
        recipe = _without(recipe, match["term"])
    wording = cast(Wording, match["wording"] or "usual")
    return dataclasses.replace(recipe, token="frozen") if wording in PHRASES else recipe, wording


def is_joint(method: str) -> bool:
    """Whether the method learns all subjects at once."""
    match = METHOD.fullmatch(method)
    return match is not None and match["name"] == JOINT


def _without(recipe: Recipe, term: str) -> Recipe:
    parts = {LAYER_WISE: recipe.layer_wise, WORD_FIT: recipe.word_fit}
    terms = [r.name for r in recipe.regularizers] + [name for name, value in parts.items() if value]
    if term not in terms:
        raise RecipeError(f"The recipe '{recipe.method}' has no term '{term}'. It has: {', '.join(terms) or 'none'}.")
    if term in parts:
        return dataclasses.replace(recipe, **{term: type(parts[term])()})
    return dataclasses.replace(recipe, regularizers=tuple(r for r in recipe.regularizers if r.name != term))


def check_method(method: str, track: str) -> None:
    """Raise RecipeError for an unknown method, or for a wording that does not apply to these subjects."""
    _, wording = method_recipe(method, seed=0)
    if wording != "usual" and not track.endswith(WORDED[wording]):
        raise RecipeError(f"'{method}': +{wording} is for {WORDED[wording]}, but the subjects are {track}.")
