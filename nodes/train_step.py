"""C-LoRA Train Step: teach one concept, and show it together with all earlier ones."""

from collections.abc import Sequence

from comfy_api.latest import io

from ..clora_core.method.draft import AUTO, Draft
from ..clora_core.method.settings import BASIC
from .actions.inputs import ConceptInputs
from .host.progress import checkpoint_name
from .sockets import COMPANIONS, CONCEPT, MUSEUM, RECIPE, node_schema, recipe_input, seed_input


class TrainStep(io.ComfyNode):
    """Teaches one concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_TrainStep",
            "C-LoRA Train Step",
            "Teach the model one concept without losing the earlier ones. You can chain Train Steps. Results are "
            "stored on disk: an identical step returns at once, and an interrupted one resumes when you press Run.",
            search_aliases=["train lora", "dreambooth", "finetune", "continual learning", "teach", "c-lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, or the model from the previous Train Step."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the concept, usually 4 to 10, of any shape. Each keeps its shape and is "
                    "scaled to about the area of the largest, at most the model's resolution.",
                ),
                CONCEPT.Input("concept", tooltip="The trigger word, from a Concept Token."),
                *map(recipe_input, BASIC),
                io.Float.Input(
                    "forgetting_weight",
                    default=1.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    tooltip="How strongly earlier concepts are protected; multiplies the recipe's own weight. The "
                    "published tables use 1. Higher forgets less but may learn less; 0 turns it off. With c-lora, it "
                    "has no effect on the first concept.",
                ),
                seed_input("training_seed", "Seed of the noise and the picture order."),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100_000,
                    tooltip="Steps between previews of the new word; 0 turns off previews and the comparison with "
                    "earlier exhibits at the end. Previews do not affect the result.",
                ),
                MUSEUM.Input(
                    "museum",
                    optional=True,
                    tooltip="The earlier concepts. If not connected, uses the museum that the model shows, or a new "
                    "one.",
                ),
                RECIPE.Input("recipe", optional=True, tooltip="Method and advanced settings, from a C-LoRA Recipe."),
                io.String.Input(
                    "captions",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="One line per picture, in order, with {word} for the trigger word. If empty, uses the "
                    "concept's template.",
                ),
                COMPANIONS.Input(
                    "companions",
                    optional=True,
                    tooltip="Concepts to learn at the same time, from a C-LoRA Companion. Steps and rank count per "
                    "concept.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per picture: only what is white counts. Empty masks count as the whole picture.",
                ),
                io.Int.Input(
                    "keep_every",
                    optional=True,
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Keep an intermediate result every so many steps. To get one, set steps to its number; it "
                    "is not trained again. Needs a constant learning rate and stop_when_learned off. 0 keeps only the "
                    "final result.",
                ),
                io.Boolean.Input(
                    "other_checkpoint",
                    optional=True,
                    default=False,
                    tooltip="Allow a museum that was trained on another checkpoint of the same family. The museum "
                    "records which checkpoint each word was trained on.",
                ),
            ],
            outputs=[
                io.Model.Output("taught_model", display_name="model", tooltip="The model with the new museum."),
                io.Clip.Output("taught_clip", display_name="clip", tooltip="The text encoder with all its words."),
                MUSEUM.Output("taught_museum", display_name="museum", tooltip="The museum with the new exhibit."),
                io.LossMap.Output("loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("preview", tooltip="Pictures of the new word after training."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        images,
        concept,
        forgetting_weight: float,
        training_seed: int,
        preview_every: int = 0,
        museum=None,
        recipe=None,
        captions: Sequence[str] = (),
        companions: Sequence[ConceptInputs] = (),
        masks: Sequence[object] = (),
        keep_every: int = 0,
        other_checkpoint: bool = False,
        **settings: float,
    ) -> io.NodeOutput:
        from .actions.teaching import train_step

        draft: Draft = recipe or Draft.named(AUTO)
        numbers = {name: value or None for name, value in settings.items()}  # 0 is auto
        if draft.recipe.rank == 0:  # a recipe that trains only the word has no rank to set
            numbers["rank"] = None
        draft = draft.with_numbers(**numbers, seed=training_seed).guarding(forgetting_weight)
        inputs = [*companions, ConceptInputs(concept, images, captions, masks)]
        hidden = cls.hidden
        checkpoint = checkpoint_name(hidden.prompt, hidden.unique_id) if hidden else ""
        options = {"keep_every": keep_every, "checkpoint": checkpoint, "other_checkpoint": other_checkpoint}
        return io.NodeOutput(*train_step(model, clip, vae, inputs, draft, museum, preview_every, **options))
