"""All regularizers. To add one, add a file to this folder and a line here."""

from .context_preservation import ContextPreservation
from .distillation import Distillation
from .elastic_weights import ElasticWeights
from .protocol import Regularizer, Term
from .row_overlap import RowOverlap
from .self_regularization import SelfRegularization
from .style_distillation import StyleDistillation
from .weight_direction import WeightDirection

REGULARIZERS: tuple[type[Regularizer], ...] = (
    SelfRegularization,
    RowOverlap,
    ElasticWeights,
    ContextPreservation,
    Distillation,
    StyleDistillation,
    WeightDirection,
)
