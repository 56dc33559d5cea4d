"""How a task is learned, as one frozen value that is kept in the museum."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import RecipeError
from ..method.recipe import Recipe
from ..method.regularizers import ContextPreservation, SelfRegularization

Head = Literal["linear", "imprint", "means", "lda"]
Adapt = Literal["every", "first", "never"]


@dataclass(frozen=True)
class TaskRecipe:
    """The numbers of the loop, and what only classification has.

    learning: the loop's numbers; its token_learning_rate is the rate of the head, and its steps follow from the epochs.
    epochs: passes over the task's pictures. adapt: which tasks get deltas. head: what decides between the classes:

    - "linear": one linear layer that grows, as in the paper. "imprint": the same, each new row starting at its class's
      mean. Both are trained with cross-entropy over the task's own classes.
    - "means": the nearest class mean. "lda": linear discriminant analysis, the class means and one covariance for all.

    corrected: whether the means of earlier classes follow the features as later tasks move them.
    """

    learning: Recipe
    epochs: int = 10
    adapt: Adapt = "every"
    head: Head = "lda"
    corrected: bool = True

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or self.epochs < 0:
            raise RecipeError(f"epochs is {self.epochs!r}; it must be a whole number from 0.")
        for name, kind in (("adapt", Adapt), ("head", Head)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise RecipeError(f"{name} is {value!r}; it must be one of {', '.join(get_args(kind))}.")
        if type(self.corrected) is not bool:
            raise RecipeError(f"corrected is {self.corrected!r}; it must be true or false.")
        if needy := [r.name for r in self.learning.regularizers if r.concepts_only]:
            raise RecipeError(f"{needy[0]} needs a text-to-image model; it cannot protect classes of pictures.")
        plain = Recipe()
        for name in ("applied", "over", "layer_wise", "word_fit", "min_snr_gamma", "checkpointing"):
            if (value := getattr(self.learning, name)) != getattr(plain, name):
                raise RecipeError(f"{name} is {value!r}, which has no meaning for classes of pictures. Leave it out.")

    @property
    def method(self) -> str:
        return self.learning.method

    def to_json(self) -> dict[str, object]:
        """The recipe as plain numbers, words and lists."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**own, "learning": self.learning.to_json()}


def _loop(method: str, *regularizers, learning_rate: float = 1e-3) -> Recipe:  # type: ignore[no-untyped-def]
    numbers = {"learning_rate": learning_rate, "token_learning_rate": 3e-3, "batch_size": 64, "schedule": "cosine"}
    return Recipe(method, regularizers, **numbers)


# The methods that `classify learn` offers, with the numbers that `bench classification --search` chose.
METHODS: dict[str, TaskRecipe] = {
    "c-lora": TaskRecipe(_loop("c-lora", SelfRegularization(10.0))),
    "preservation": TaskRecipe(_loop("preservation", ContextPreservation(5000.0))),
    "first-task": TaskRecipe(_loop("first-task", learning_rate=3e-4), adapt="first"),
    "frozen": TaskRecipe(_loop("frozen"), adapt="never"),
    "sequential": TaskRecipe(_loop("sequential", learning_rate=3e-4)),
}

DEFAULT = "first-task"


def method_named(method: str) -> TaskRecipe:
    """A method's recipe by its name. Raises RecipeError if there is none."""
    if method not in METHODS:
        raise RecipeError(f"There is no method '{method}'. Choose one of: {', '.join(METHODS)}.")
    return METHODS[method]
