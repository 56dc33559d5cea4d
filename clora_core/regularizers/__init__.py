"""The catalogue of regularizers. A new one is one file beside this one, and one line here."""

from .context_preservation import ContextPreservation
from .protocol import Regularizer, Term
from .self_regularization import SelfRegularization

REGULARIZERS: tuple[type[Regularizer], ...] = (SelfRegularization, ContextPreservation)

__all__ = ["REGULARIZERS", "ContextPreservation", "Regularizer", "SelfRegularization", "Term"]
