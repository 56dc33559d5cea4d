"""C-LoRA Recipe: the training method and its advanced settings."""

from comfy_api.latest import io

from ..clora_core.errors import RecipeError
from ..clora_core.method.draft import AUTO, AUTOMATIC, Draft
from ..clora_core.method.recipe import RECIPES
from ..clora_core.method.settings import ADVANCED
from .sockets import RECIPE, node_schema, recipe_input


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
                    options=[AUTO, *RECIPES],
                    default=AUTO,
                    tooltip="How earlier concepts are protected. auto: preservation; word-gated-onwards for FLUX, "
                    "Chroma, SD 3, Qwen-Image and Z-Image. preservation: trains at the trigger word only, then makes "
                    "an ordinary LoRA of it that hardly changes other prompts. word-gated: acts only at the trigger "
                    "word, or from it onwards; nothing else changes, and several styles are kept. c-lora: avoids the "
                    "weights that earlier concepts changed, as in its paper. museum-maker: for styles, partly "
                    "reconstructed from its paper. textual-inversion: trains only the word. The help page explains "
                    "all methods.",
                ),
                *map(recipe_input, ADVANCED),
            ],
            outputs=[RECIPE.Output("recipe", tooltip="Connect it to a Train Step.")],
        )

    @classmethod
    def validate_inputs(cls, method: str | None = None) -> bool | str:
        """Replaces ComfyUI's check of `method`: saved workflows with a baseline still run.

        Without a text, `method` is linked (None), or refused when the node runs.
        """
        try:
            return not isinstance(method, str) or bool(Draft.named(method))
        except RecipeError as error:
            return str(error)

    @classmethod
    def execute(cls, method: str, **settings: float | str | bool) -> io.NodeOutput:
        numbers = {name: None if name in AUTOMATIC and not value else value for name, value in settings.items()}
        return io.NodeOutput(Draft.named(method).with_numbers(**numbers))
