"""All settings of learning in one frozen value, which is stored with the exhibit."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import RecipeError
from ..model.numbers import LearningRateSchedule, Numbers, Token
from ..model.precision import Precision
from .regularizers import (
    REGULARIZERS,
    ContextPreservation,
    Distillation,
    ElasticWeights,
    Regularizer,
    RowOverlap,
    SelfRegularization,
    StyleDistillation,
    WeightDirection,
)

Applied = Literal["everywhere", "word", "onwards"]
Over = Literal["museum", "base", "shared"]
Down = Literal["learned", "orthogonal", "quiet", "identity"]
CHOICES = {
    **{"applied": Applied, "over": Over, "down": Down, "token": Token},
    **{"schedule": LearningRateSchedule, "precision": Precision},
}


RETIRED = ("word_alone", "word_focus")  # settings and regularizers that only recipes in older museums have


@dataclass(frozen=True)
class Recipe:
    """How one concept is learned.

    learning_rate is for the deltas, token_learning_rate for the word. Every update takes `accumulation` batches of
    batch_size pictures. warmup is a share of the steps. min_snr_gamma 0 gives all timesteps the same weight.

    applied: where in a prompt the deltas act: "everywhere", at the "word" only, or from the word "onwards".
    over: what the deltas are learned on top of: the "museum" without its gated exhibits; the "base" alone; or the last
    "shared" delta, which then continues to train (one LoRA, of which every exhibit stores an increment). down: the
    factor that reads the text is "learned" with `up`; fixed to directions "orthogonal" to those of other exhibits;
    fixed to the "identity" (a full matrix at any rank); or learned within the directions that other prompts hardly use
    ("quiet"). token: the word's vectors are "learned", or "frozen": those of known words, so that every caption is
    encoded only once. layer_wise: the word has separate vectors for each cross-attention.

    Of captions (`learning/variation.py`): caption_lines: every line is a caption, drawn at random; otherwise the lines
    are one caption. shuffle_tags: the parts between commas, but for the first keep_tokens, come in random order.
    tag_dropout: the share of these parts that is left out, never one with a word that is learned. caption_dropout: the
    share of draws that use the concept's template instead.

    word_fit: above 0, the deltas are trained at the new words only, and then fitted to act everywhere; the weight of
    what they should not change (`learning/word_fit.py`).

    stop_when_learned: `steps` is the most, and training ends when the concept is learned (`learning/stopping.py`).
    """

    method: str = "c-lora"
    regularizers: tuple[Regularizer, ...] = ()
    applied: Applied = "everywhere"
    over: Over = "museum"
    down: Down = "learned"
    token: Token = Numbers.token
    layer_wise: bool = False
    rank: int = Numbers.rank
    steps: int = Numbers.steps
    learning_rate: float = Numbers.learning_rate
    token_learning_rate: float = Numbers.token_learning_rate
    batch_size: int = Numbers.batch_size
    accumulation: int = 1
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    schedule: LearningRateSchedule = Numbers.schedule
    warmup: float = 0.0
    flip: bool = False
    caption_lines: bool = False
    shuffle_tags: bool = False
    keep_tokens: int = 0
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    word_fit: float = 0.0
    min_snr_gamma: float = 0.0
    precision: Precision = "fp32"
    checkpointing: bool = False
    stop_when_learned: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(isinstance(self.method, str), "method", self.method, "a string")
        _require(_is_whole(self.rank) and self.rank >= 0, "rank", self.rank, "a whole number; 0 trains only the word")
        for name in ("steps", "batch_size", "accumulation"):
            _require(_is_whole(value := getattr(self, name)) and value >= 1, name, value, "a whole number from 1")
        for name in ("learning_rate", "token_learning_rate", "clip_norm"):
            _require(_is_number(value := getattr(self, name)) and 0 < value <= 1e30, name, value, "above 0, up to 1e30")
        for name in ("weight_decay", "min_snr_gamma", "word_fit"):
            _require(_is_number(value := getattr(self, name)) and 0 <= value < math.inf, name, value, "0 or more")
        for name in ("layer_wise", "flip", "caption_lines", "shuffle_tags", "checkpointing", "stop_when_learned"):
            _require(isinstance(value := getattr(self, name), bool), name, value, "true or false")
        shares = {"warmup": "steps", "tag_dropout": "tags", "caption_dropout": "captions"}
        for name, whole in shares.items():
            share = _is_number(value := getattr(self, name)) and 0 <= value <= 1
            _require(share, name, value, f"a share of the {whole}, between 0 and 1")
        kept = _is_whole(self.keep_tokens) and self.keep_tokens >= 0
        _require(kept, "keep_tokens", self.keep_tokens, "a whole number from 0")
        seed = _is_whole(self.seed) and 0 <= self.seed < 2**63
        _require(seed, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        for name, kind in CHOICES.items():
            _require(
                (value := getattr(self, name)) in get_args(kind), name, value, f"one of {', '.join(get_args(kind))}"
            )
        ungated = ", ".join(r.name for r in self.regularizers if r.everywhere_only)
        fits = self.applied == "everywhere" or not ungated
        _require(fits, "applied", self.applied, f"everywhere with {ungated}: gated deltas change no earlier prompt")
        fits = self.over != "shared" or (self.applied, self.down) == ("everywhere", "learned")
        _require(fits, "over", self.over, "museum or base, unless `down` is learned and applied everywhere")
        fits = not self.word_fit or (self.applied == "everywhere" and self.over != "shared" and not self.layer_wise)
        rule = "0, unless the deltas are new ones, applied everywhere, of a word with one set of vectors"
        _require(fits, "word_fit", self.word_fit, rule)
        _require(self.rank > 0 or self.token == "learned", "token", self.token, "learned with rank 0: nothing else is")
        fits = self.token == "learned" or not (self.shuffle_tags or self.tag_dropout)
        _require(fits, "token", self.token, "learned with shuffle_tags or tag_dropout: frozen encodes captions once")
        names = [regularizer.name for regularizer in self.regularizers]
        _require(len(set(names)) == len(names), "regularizers", ", ".join(names), "different regularizers")

    @property
    def open_ended(self) -> bool:
        """Whether training can continue with more steps: nothing depends on their number."""
        return self.schedule == "constant" and self.warmup == 0 and not self.stop_when_learned

    @property
    def independent(self) -> bool:
        """Whether what is learned does not depend on what was learned with this recipe before: it builds on no earlier
        delta, takes no direction from earlier concepts, and protects none of them."""
        apart = self.rank == 0 or self.applied != "everywhere" or self.over == "base"
        guarded = self.word_fit > 0 or any(regularizer.weight for regularizer in self.regularizers)
        return apart and self.over != "shared" and self.down in ("learned", "identity") and not guarded

    def to_json(self) -> dict[str, object]:
        """The recipe as plain numbers, strings and lists. What earlier versions did not have is left out if unused."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.token == "learned":
            del fields["token"]
        if not self.word_fit:
            del fields["word_fit"]
        fields["regularizers"] = [{"name": r.name, **dataclasses.asdict(r)} for r in self.regularizers]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "Recipe":
        """The inverse of `to_json`. Raises RecipeError for anything that is not a recipe."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in fields.items() if name not in RETIRED}
        if unknown := set(values) - names:
            raise RecipeError(f"A recipe has no '{min(unknown)}'. It has: {', '.join(sorted(names))}.")
        try:
            entries: Any = values.pop("regularizers", [])
            regularizers = (_regularizer(entry) for entry in entries if _name_of(entry) not in RETIRED)
            values["regularizers"] = tuple(regularizers)
            return cls(**values)  # type: ignore[arg-type]
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise RecipeError(f"This recipe cannot be read: {error}.") from error


def _name_of(entry: object) -> object:
    named = isinstance(entry, dict) and "name" in entry
    _require(named, "a regularizer", entry, "an object with a name and settings")
    return entry["name"]  # type: ignore[index]


def _regularizer(entry: Mapping[str, Any]) -> Regularizer:
    values = dict(entry)
    name = values.pop("name")
    for kind in REGULARIZERS:
        if kind.name == name:
            defaults = dataclasses.asdict(kind())
            for key, value in values.items():
                _require(key in defaults, name, key, f"one of its settings: {', '.join(defaults)}")
                expected = type(defaults[key])
                fits = _is_number(value) if expected is float else type(value) is expected
                _require(fits, f"{name}.{key}", value, f"of type {expected.__name__}")
            return kind(**values)
    raise RecipeError(f"There is no regularizer '{name}'. Known: {', '.join(kind.name for kind in REGULARIZERS)}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (_is_whole(value) and abs(value) < 2**63)  # type: ignore[arg-type]


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value!r}; it must be {rule}.")


# The weights are the ones in the tables of docs/measurements.md.
RECIPES: dict[str, Recipe] = {
    "preservation": Recipe("preservation", (ContextPreservation(1.5),), word_fit=3.0),
    "word-gated-onwards": Recipe("word-gated-onwards", applied="onwards"),
    "word-gated": Recipe("word-gated", applied="word"),
    "c-lora": Recipe("c-lora", (SelfRegularization(3.0),)),
    # Unlike in the paper, the shared LoRA is on cross-attention keys and values only, and no word starts from a noun.
    "museum-maker": Recipe(
        "museum-maker",
        (StyleDistillation(), WeightDirection(), Distillation()),
        over="shared",
        layer_wise=True,
    ),
    "textual-inversion": Recipe("textual-inversion", rank=0),
}

# For comparison with RECIPES. The user interface does not list them, but commands accept their names.
BASELINES: dict[str, Recipe] = {
    "context-preservation": Recipe("context-preservation", (ContextPreservation(),)),
    "null-space": Recipe("null-space", down="quiet"),
    "orthogonal": Recipe("orthogonal", over="base", down="orthogonal"),
    "c-lora-squares": Recipe("c-lora-squares", (SelfRegularization(3.0, squares=True),)),
    "c-lora-rows": Recipe("c-lora-rows", (RowOverlap(100.0),)),
    "ewc-lora": Recipe("ewc-lora", (ElasticWeights(),)),
    "ewc": Recipe("ewc", (ElasticWeights(100.0),), down="identity"),
    "lwf": Recipe("lwf", (Distillation(),)),
    "separate": Recipe("separate", over="base"),
    "sequential": Recipe("sequential"),
    "single-lora": Recipe("single-lora", over="shared"),
    "full-kv": Recipe("full-kv", down="identity"),
}

DEFAULT_METHOD = "preservation"  # docs/measurements.md compares it with the others
GATED = "word-gated-onwards"  # the default where text and picture mix: see `fitting.gated_by_default`


def guarding(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with the weights of its regularizers and of its word fit multiplied by the factor."""
    regularizers = tuple(dataclasses.replace(r, weight=r.weight * factor) for r in recipe.regularizers)
    return dataclasses.replace(recipe, regularizers=regularizers, word_fit=recipe.word_fit * factor)


def shared_by(recipe: Recipe, count: int) -> Recipe:
    """The recipe for `count` concepts at once, with the sum of the ranks and steps of learning them in turn."""
    return dataclasses.replace(recipe, rank=recipe.rank * count, steps=recipe.steps * count)


def recipe_named(method: str, **numbers: object) -> Recipe:
    """The recipe or baseline of that name, with some of its fields replaced."""
    if (recipe := RECIPES.get(method) or BASELINES.get(method)) is None:
        raise RecipeError(f"There is no recipe '{method}'. Choose one of: {', '.join(RECIPES)}.")
    return dataclasses.replace(recipe, **numbers)  # type: ignore[arg-type]
