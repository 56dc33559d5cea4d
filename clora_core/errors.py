"""All exceptions of this package. A message names the offending value, the rule, and the way out."""

from .texts import printable, shortened


class CLoRAError(Exception):
    """The base class. Its message is for the user; it is shortened and made printable, since it may quote any text."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message)))


class ConceptError(CLoRAError):
    """A concept that cannot be learned: an invalid word, no pictures, a different number of captions."""


class BaseModelError(CLoRAError):
    """A model that cannot be used: no separate key/value projections, a broken checkpoint, not the museum's base."""


class MuseumError(CLoRAError):
    """A museum or museum file that cannot be read, written or combined."""


class RecipeError(CLoRAError):
    """An invalid name or number in a recipe."""


class LearningError(CLoRAError):
    """Learning cannot start or continue."""


class Cancelled(Exception):  # noqa: N818  (not an error)
    """Raised by a `report` callback to stop learning. The progress so far can be resumed."""
