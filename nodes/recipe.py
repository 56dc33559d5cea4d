"""C-LoRA Recipe: the numbers of learning that one seldom touches."""

from typing import get_args

from comfy_api.latest import io

from ..clora_core.errors import RecipeError
from ..clora_core.method.recipe import DEFAULT_METHOD, RECIPES, LearningRateSchedule, recipe_named
from ..clora_core.model.precision import Precision
from .sockets import RECIPE, described

DEFAULT = RECIPES[DEFAULT_METHOD]


class LearningRecipe(io.ComfyNode):
    """How to learn, beyond what the Train Step asks for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_Recipe",
            "C-LoRA Recipe",
            "The method of learning and its advanced numbers, for a Train Step. Steps, learning rate, rank, batch "
            "size, forgetting weight and seed stand on the Train Step itself.",
            search_aliases=["training settings", "optimizer", "hyperparameters", "scheduler", "c-lora"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(RECIPES),
                    default=DEFAULT.method,
                    tooltip="How earlier concepts are protected. preservation: leave other prompts' keys and values "
                    "where they are. word-gated: act at the word only, or from it onwards; nothing else can change, "
                    "and several styles are kept. c-lora: keep off the weights that they moved, as its paper does. "
                    "museum-maker: for styles, partly reconstructed from its paper. textual-inversion: the word alone. "
                    "The help page explains all of them.",
                ),
                io.Float.Input(
                    "token_learning_rate",
                    default=DEFAULT.token_learning_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    tooltip="Learning rate of the word's vectors. Higher learns the word faster and less steadily.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=DEFAULT.accumulation,
                    min=1,
                    max=256,
                    tooltip="Batches gathered before every update: a larger batch in the same memory, but slower.",
                ),
                io.Float.Input(
                    "clip_norm",
                    default=DEFAULT.clip_norm,
                    min=1e-4,
                    max=1000.0,
                    step=0.01,
                    tooltip="The longest gradient of an update. Smaller is steadier.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=DEFAULT.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=1e-4,
                    tooltip="How strongly the changes of the model are pulled to zero. 0 is off.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(get_args(LearningRateSchedule)),
                    default=DEFAULT.schedule,
                    tooltip="How the learning rates go over the steps: constant, or to zero by a cosine or a line.",
                ),
                io.Float.Input(
                    "warmup",
                    default=DEFAULT.warmup,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the steps in which the learning rates rise from zero.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=DEFAULT.flip,
                    tooltip="Show half of the pictures mirrored. Leave it off for faces, letters and logos.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=DEFAULT.min_snr_gamma,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Min-SNR weighting of the timesteps: 5 is usual, 0 weighs all alike.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(get_args(Precision)),
                    default=DEFAULT.precision,
                    tooltip="How the model computes while it learns. bf16 and fp16 take less memory and are faster on "
                    "a GPU; fp32 is the most exact.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=DEFAULT.checkpointing,
                    tooltip="Takes much less memory and about a third more time, with the same result.",
                ),
            ],
            outputs=[RECIPE.Output("recipe", display_name="recipe", tooltip="For a Train Step.")],
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None) -> bool | str:
        """ComfyUI leaves `method` to this, so that workflows saved with a baseline still run. None: linked."""
        try:
            return method is None or bool(recipe_named(method))
        except RecipeError as error:
            return str(error)

    @classmethod
    def execute(cls, method: str, **numbers: float | str | bool) -> io.NodeOutput:
        return io.NodeOutput(recipe_named(method, **numbers))
