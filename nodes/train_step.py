"""C-LoRA Train Step: teach one concept, and view it together with all that was taught before."""

import dataclasses
from collections.abc import Sequence

from comfy_api.latest import io

from ..clora_core.method.recipe import DEFAULT_METHOD, RECIPES, guarding, shared_by
from .actions.draft import Companion
from .host.progress import workflow_id
from .sockets import COMPANIONS, CONCEPT, MUSEUM, RECIPE, SEED_MAX, described, one_each_but

DEFAULT = RECIPES[DEFAULT_METHOD]


class TrainStep(io.ComfyNode):
    """Teach one concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_TrainStep",
            "C-LoRA Train Step",
            "Teach the model one concept without losing the earlier ones. Chain one Train Step after another. What was "
            "learned is kept on disk: the same step again returns at once, and an interrupted one goes on with Run.",
            search_aliases=["train lora", "dreambooth", "finetune", "continual learning", "teach", "c-lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, or what the Train Step before returned."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures of the concept, 4 to 30 or so. Larger ones than the model's own are made "
                    "smaller, and edges are cut off so that the sides are multiples of 64 pixels.",
                ),
                CONCEPT.Input("concept", tooltip="The new word, from a Concept Token."),
                io.Int.Input(
                    "steps",
                    default=DEFAULT.steps,
                    min=1,
                    max=100_000,
                    tooltip="How many updates. More learns the concept better, until it repeats the pictures.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULT.learning_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    tooltip="How far each update moves the model. Higher is faster and less steady. The built-in "
                    "starter model takes 0.006.",
                ),
                io.Int.Input(
                    "rank",
                    default=DEFAULT.rank,
                    min=1,
                    max=256,
                    tooltip="How much can be changed. More holds more detail, and takes more room in the museum.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=DEFAULT.batch_size,
                    min=1,
                    max=256,
                    tooltip="Pictures seen at once. More is steadier, slower, and takes more memory.",
                ),
                io.Float.Input(
                    "forgetting_weight",
                    default=1.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    tooltip="How strongly earlier concepts are protected, times the recipe's own weight: 1 is what the "
                    "published tables were measured with. More forgets less, and may learn less; 0 is off. With c-lora "
                    "it has no effect on the first concept.",
                ),
                io.Int.Input(
                    "training_seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    tooltip="Another number learns with other noise and another order of the pictures.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100_000,
                    tooltip="Show a picture of the new word every so many steps; 0 shows none. What is learned does "
                    "not depend on it.",
                ),
                MUSEUM.Input(
                    "museum",
                    optional=True,
                    tooltip="What was taught so far. Not connected: what the model shows already, or a new museum.",
                ),
                RECIPE.Input("recipe", optional=True, tooltip="Method and advanced numbers, from a C-LoRA Recipe."),
                io.String.Input(
                    "captions",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Empty: the concept's template. Otherwise one line per picture, in their order, with "
                    "{word} where the new word belongs.",
                ),
                COMPANIONS.Input(
                    "companions",
                    optional=True,
                    tooltip="Concepts to learn at the same time, from a C-LoRA Companion. Steps and rank are of each.",
                ),
            ],
            outputs=[
                io.Model.Output("taught_model", display_name="model", tooltip="The model, showing the new museum."),
                io.Clip.Output("taught_clip", display_name="clip", tooltip="The text encoder, knowing all its words."),
                MUSEUM.Output("taught_museum", display_name="museum", tooltip="The museum with the new exhibit."),
                io.LossMap.Output("loss", display_name="loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("preview", display_name="preview", tooltip="What the new word shows."),
            ],
            hidden=[io.Hidden.extra_pnginfo],
            is_input_list=True,
        )

    @classmethod
    @one_each_but("images", "captions")
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
        companions: Sequence[Companion] = (),
        **numbers: float,
    ) -> io.NodeOutput:
        from .actions.teaching import train

        recipe = guarding(recipe or DEFAULT, forgetting_weight)
        if recipe.rank == 0:  # a recipe of words alone stays one
            numbers["rank"] = 0
        recipe = shared_by(dataclasses.replace(recipe, **numbers, seed=training_seed), 1 + len(companions))
        taught = [*companions, Companion(concept, images, captions)]
        workflow = workflow_id(cls.hidden.extra_pnginfo if cls.hidden else None)
        learned = train(model, clip, vae, taught, recipe, museum, preview_every, workflow)
        return io.NodeOutput(*learned)
