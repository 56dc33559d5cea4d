"""The catalogue of regularizers. A new one is one file beside this one, and one line here."""

from .protocol import Regularizer, Term
from .self_regularization import SelfRegularization

REGULARIZERS: tuple[type[Regularizer], ...] = (SelfRegularization,)

__all__ = ["REGULARIZERS", "Regularizer", "SelfRegularization", "Term"]
