"""The one exception family. A message names the offending value, the rule, and the way out."""

from .texts import printable, shortened


class CLoRAError(Exception):
    """Anything this package refuses; its message is written for the person at the keyboard.

    What it quotes may be any text at all: the message is made short and printable here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message)))


class ConceptError(CLoRAError):
    """What shall be learned cannot be: a bad word, no pictures, captions of another count."""


class BaseModelError(CLoRAError):
    """The model cannot be used: no separate key/value projections, a broken checkpoint, not the museum's base."""


class MuseumError(CLoRAError):
    """A museum, or a file of one, that cannot be read, written or combined."""


class RecipeError(CLoRAError):
    """A number or name of a recipe that makes no sense."""


class LearningError(CLoRAError):
    """Learning cannot start, or had to stop."""


class Cancelled(Exception):  # noqa: N818  (a wish, not an error)
    """Raised by a `report` callback to stop learning; what was learned so far stays resumable."""
