"""C-LoRA Recipe: the training method and its advanced settings."""

from comfy_api.latest import io

from ..clora_core.errors import RecipeError
from ..clora_core.method.draft import AUTOMATIC, Draft
from ..clora_core.method.recipe import DEFAULT_METHOD, RECIPES, recipe_named
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
                    options=list(RECIPES),
                    default=DEFAULT_METHOD,
                    tooltip="How earlier concepts are protected. preservation: keeps the keys and values of other "
                    "prompts where they are. word-gated: acts only at the trigger word, or from it onwards; nothing "
                    "else changes, and several styles are kept. c-lora: keeps off the weights that earlier concepts "
                    "changed, as in its paper. museum-maker: for styles, partly reconstructed from its paper. "
                    "textual-inversion: trains only the word. The help page explains all methods.",
                ),
                recipe_input("token_learning_rate"),
                recipe_input("accumulation"),
                recipe_input("clip_norm"),
                recipe_input("weight_decay"),
                recipe_input("schedule"),
                recipe_input("warmup"),
                recipe_input("flip"),
                recipe_input("min_snr_gamma"),
                recipe_input("precision"),
                recipe_input("checkpointing"),
                recipe_input("shuffle_tags"),
                recipe_input("keep_tokens"),
                recipe_input("tag_dropout"),
                recipe_input("caption_dropout"),
                recipe_input("caption_lines"),
                recipe_input("stop_when_learned"),
                recipe_input("token"),
            ],
            outputs=[RECIPE.Output("recipe", tooltip="Connect it to a Train Step.")],
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
