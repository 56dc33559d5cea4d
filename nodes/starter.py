"""The built-in model and its built-in subjects: try C-LoRA without a download."""

from comfy_api.latest import io

from ..clora_core.errors import ConceptError
from ..clora_core.starter.subjects import SUBJECTS, captions, pictures
from .sockets import node_schema, seed_input


class StarterModel(io.ComfyNode):
    """The small latent diffusion model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_StarterModel",
            "C-LoRA Starter Model",
            "A small built-in model of 64×64 cartoon portraits, with the structure of Stable Diffusion. It trains in "
            "seconds to minutes, even without a GPU. No download needed.",
            search_aliases=["example model", "demo", "load checkpoint", "tiny", "offline", "c-lora"],
            outputs=[
                io.Model.Output("model", tooltip="Predicts v. Sample it at 64×64 pixels."),
                io.Clip.Output("clip", tooltip="Knows only the words of its small world."),
                io.Vae.Output("vae", tooltip="Converts 64×64 pixels to 32×8×8 latents and back."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .host.starter import load_starter

        return io.NodeOutput(*load_starter())


class StarterPictures(io.ComfyNode):
    """Pictures to train the Starter Model on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_StarterPictures",
            "C-LoRA Starter Pictures",
            "Training pictures of a made-up character or style that the Starter Model does not know.",
            search_aliases=["example images", "demo", "training images", "dataset", "c-lora"],
            inputs=[
                io.Combo.Input(
                    "subject",
                    options=list(SUBJECTS),
                    default=SUBJECTS[0],
                    tooltip="What the pictures show: one of ten characters that are easy to confuse, or of five "
                    "styles.",
                ),
                io.Int.Input(
                    "count",
                    default=16,
                    min=1,
                    max=256,
                    tooltip="Number of pictures. Clothes, mood and place vary; the character stays the same.",
                ),
                seed_input("picture_seed", "Another seed draws other pictures."),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The pictures, 64×64 pixels each."),
                io.String.Output(
                    "captions",
                    tooltip="For a style: one caption per picture, with {word} in it, for a Train Step. Empty for a "
                    "character, which needs no captions.",
                ),
            ],
        )

    @classmethod
    def execute(cls, subject: str, count: int, picture_seed: int) -> io.NodeOutput:
        from .actions.pictures import from_files

        if subject not in SUBJECTS:
            raise ConceptError(f"There is no built-in subject '{subject}'. Choose one of: {', '.join(SUBJECTS)}.")
        lines = captions(subject, count, seed=picture_seed)
        return io.NodeOutput(from_files(pictures(subject, count, seed=picture_seed)), "\n".join(lines))
