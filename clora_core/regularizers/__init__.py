"""The catalogue of regularizers. A new one is one file beside this one, and one line here."""

from .context_preservation import ContextPreservation
from .distillation import Distillation
from .protocol import Regularizer, Term
from .self_regularization import SelfRegularization

REGULARIZERS: tuple[type[Regularizer], ...] = (SelfRegularization, ContextPreservation, Distillation)

__all__ = ["REGULARIZERS", "ContextPreservation", "Distillation", "Regularizer", "SelfRegularization", "Term"]
