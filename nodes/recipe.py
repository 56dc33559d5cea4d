"""C-LoRA Recipe: the training method and its advanced settings."""

from typing import get_args

from comfy_api.latest import io

from ..clora_core.errors import RecipeError
from ..clora_core.method.draft import AUTO, AUTOMATIC, Draft
from ..clora_core.method.recipe import DEFAULT_METHOD, RECIPES, recipe_named
from ..clora_core.model.numbers import LearningRateSchedule
from ..clora_core.model.precision import Precision
from .sockets import RECIPE, node_schema

DEFAULT = RECIPES[DEFAULT_METHOD]


class LearningRecipe(io.ComfyNode):
    """The settings that the Train Step itself does not have."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_Recipe",
            "C-LoRA Recipe",
            "The training method and its advanced settings, for a Train Step. Steps, learning rate, rank, batch size, "
            "forgetting weight and seed are on the Train Step itself.",
            search_aliases=["training settings", "optimizer", "hyperparameters", "scheduler", "c-lora"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(RECIPES),
                    default=DEFAULT.method,
                    tooltip="How earlier concepts are protected. preservation: keeps the keys and values of other "
                    "prompts where they are. word-gated: acts only at the trigger word, or from it onwards; nothing "
                    "else changes, and several styles are kept. c-lora: keeps off the weights that earlier concepts "
                    "changed, as in its paper. museum-maker: for styles, partly reconstructed from its paper. "
                    "textual-inversion: trains only the word. The help page explains all methods.",
                ),
                io.Float.Input(
                    "token_learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=1e-7,
                    tooltip="Learning rate of the trigger word's vectors; 0 is auto. Higher is faster but less stable.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Batches accumulated per update: a larger batch in the same memory, but slower. 0 is auto.",
                ),
                io.Float.Input(
                    "clip_norm",
                    default=DEFAULT.clip_norm,
                    min=1e-4,
                    max=1000.0,
                    step=0.01,
                    tooltip="Maximum gradient norm of an update. Lower is more stable.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=DEFAULT.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=1e-4,
                    tooltip="How strongly the weight changes are pulled towards zero. 0 turns it off.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=[AUTO, *get_args(LearningRateSchedule)],
                    default=AUTO,
                    tooltip="Learning rate schedule: constant, or decaying to zero (cosine or linear). auto suits the "
                    "model; it is constant if you set the steps.",
                ),
                io.Float.Input(
                    "warmup",
                    default=DEFAULT.warmup,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Fraction of the steps during which the learning rates rise from zero.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=DEFAULT.flip,
                    tooltip="Mirror half of the pictures. Leave it off for faces, letters and logos.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=DEFAULT.min_snr_gamma,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Min-SNR weighting of the timesteps. 5 is common; 0 turns it off.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[AUTO, *get_args(Precision)],
                    default=AUTO,
                    tooltip="Precision of the model during training. bf16 and fp16 need less memory and are faster on "
                    "a GPU; fp32 is the most exact. auto suits the device.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=DEFAULT.checkpointing,
                    tooltip="Gradient checkpointing: needs much less memory and about a third more time. Off is auto: "
                    "only if the memory is too small otherwise. The result is the same.",
                ),
                io.Boolean.Input(
                    "shuffle_tags",
                    default=DEFAULT.shuffle_tags,
                    tooltip="Put the tags of a caption (the parts between commas) in a random order every time.",
                ),
                io.Int.Input(
                    "keep_tokens",
                    default=DEFAULT.keep_tokens,
                    min=0,
                    max=1000,
                    tooltip="Number of tags at the start of a caption that are neither shuffled nor left out.",
                ),
                io.Float.Input(
                    "tag_dropout",
                    default=DEFAULT.tag_dropout,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the tags that are left out at random. A tag with the trigger word always stays.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=DEFAULT.caption_dropout,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the captions that are replaced by the concept's template at random.",
                ),
                io.Boolean.Input(
                    "caption_lines",
                    default=DEFAULT.caption_lines,
                    tooltip="Every line of a caption file is a caption, drawn at random. Off: its lines are one "
                    "caption.",
                ),
                io.Boolean.Input(
                    "stop_when_learned",
                    default=DEFAULT.stop_when_learned,
                    tooltip="End before the last step, when the error on a picture that is left out of training no "
                    "longer falls. With fewer than 5 pictures, none is left out, and only the noise is new.",
                ),
            ],
            outputs=[RECIPE.Output("recipe", display_name="recipe", tooltip="Connect it to a Train Step.")],
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None) -> bool | str:
        """Replaces ComfyUI's check of `method`: saved workflows with a baseline still run.

        Without a text, `method` is linked (None), or refused when the node runs.
        """
        try:
            return not isinstance(method, str) or bool(recipe_named(method))
        except RecipeError as error:
            return str(error)

    @classmethod
    def execute(cls, method: str, **settings: float | str | bool) -> io.NodeOutput:
        numbers = {name: None if name in AUTOMATIC and not value else value for name, value in settings.items()}
        return io.NodeOutput(Draft(recipe_named(method)).with_numbers(**numbers))
