"""The built-in model and its built-in subjects: everything to try C-LoRA with, and nothing to download."""

from comfy_api.latest import io

from ..clora_core.errors import ConceptError
from ..clora_core.starter.subjects import SUBJECTS, captions, pictures
from .sockets import SEED_MAX, described


class StarterModel(io.ComfyNode):
    """The small latent diffusion model that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_StarterModel",
            "C-LoRA Starter Model",
            "A small built-in model of cartoon portraits, 64×64 pixels, made like Stable Diffusion. It learns in "
            "seconds to minutes, even without a GPU. Nothing is downloaded.",
            search_aliases=["example model", "demo", "load checkpoint", "tiny", "offline", "c-lora"],
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="Predicts v; sample it at 64×64 pixels."),
                io.Clip.Output("clip", display_name="clip", tooltip="Knows the words of its small world only."),
                io.Vae.Output("vae", display_name="vae", tooltip="64×64 pixels to latents of 32×8×8, and back."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from .host.starter import load_starter

        return io.NodeOutput(*load_starter())


class StarterPictures(io.ComfyNode):
    """Pictures to learn from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_StarterPictures",
            "C-LoRA Starter Pictures",
            "Pictures of a made-up character, or in a style, that the starter model does not know: something to teach.",
            search_aliases=["example images", "demo", "training images", "dataset", "c-lora"],
            inputs=[
                io.Combo.Input(
                    "subject",
                    options=list(SUBJECTS),
                    default=SUBJECTS[0],
                    tooltip="Who or what is on the pictures: ten characters that are easy to confuse, and five styles.",
                ),
                io.Int.Input(
                    "count",
                    default=16,
                    min=1,
                    max=256,
                    tooltip="How many pictures. Clothes, mood and place change; the character stays itself.",
                ),
                io.Int.Input(
                    "picture_seed", default=0, min=0, max=SEED_MAX, tooltip="Another number draws other pictures."
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="64×64 pixels each."),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="For a style, what is on each picture, a line each, with {word} in it, for a Train Step. "
                    "For a character nothing: its word says it all.",
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
