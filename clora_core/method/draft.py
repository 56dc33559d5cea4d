"""A recipe with automatic numbers, which `learning/fitting.py` chooses by model and device."""

import dataclasses
from dataclasses import dataclass

from .recipe import DEFAULT_METHOD, Recipe, guarding, recipe_named

AUTO = "auto"
AUTOMATIC = (
    *("rank", "steps", "learning_rate", "token_learning_rate", "schedule"),
    *("batch_size", "accumulation", "precision", "checkpointing", "token"),
)


@dataclass(frozen=True)
class Draft:
    """chosen: the `AUTOMATIC` fields that the user set, so that the recipe's values apply.

    open: the user did not choose a method either, so that the family's applies.
    """

    recipe: Recipe
    chosen: frozenset[str] = frozenset()
    open: bool = False

    @classmethod
    def of(cls, recipe: "Recipe | Draft") -> "Draft":
        """A recipe is a draft without automatic numbers."""
        return recipe if isinstance(recipe, Draft) else cls(recipe, frozenset(AUTOMATIC))

    @classmethod
    def named(cls, method: str) -> "Draft":
        """The recipe of that name, all numbers automatic; with "auto", the method too."""
        opened = method == AUTO
        return cls(recipe_named(DEFAULT_METHOD if opened else method), open=opened)

    def with_numbers(self, **numbers: object) -> "Draft":
        """Set some fields; None and "auto" leave a field as it is."""
        given = {name: value for name, value in numbers.items() if value not in (None, AUTO)}
        recipe = dataclasses.replace(self.recipe, **given)  # type: ignore[arg-type]
        return Draft(recipe, self.chosen | given.keys() & frozenset(AUTOMATIC), self.open)

    def guarding(self, factor: float) -> "Draft":
        """With the weights of all protection multiplied by the factor: see `recipe.guarding`."""
        return Draft(guarding(self.recipe, factor), self.chosen, self.open)
