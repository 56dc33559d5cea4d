"""C-LoRA Load Museum and C-LoRA Save Museum: museums between the graph and the disk."""

from comfy_api.latest import io, ui

from .host import folders
from .host.progress import say
from .sockets import MUSEUM, described


class LoadMuseum(io.ComfyNode):
    """View a museum: its words become words of every prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_LoadMuseum",
            "C-LoRA Load Museum",
            "Let a model and its text encoder show what a museum holds. Write its words in ordinary prompts.",
            search_aliases=["load lora", "lora loader", "apply museum", "embedding", "c-lora", "concepts"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the museum was made over."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Combo.Input(
                    "museum_name",
                    options=folders.museum_names() or [""],  # else the frontend leaves the input away
                    tooltip="A file of models/loras/museums. Without effect where a museum is connected.",
                ),
                io.String.Input(
                    "exhibits",
                    default="",
                    multiline=True,
                    tooltip="Empty: all of them. Otherwise one word per line, with its own strength if you like: "
                    "<my-cat> or <my-cat>: 0.8.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much the exhibits change the model. 1 as they were learned, 0 their words alone.",
                ),
                MUSEUM.Input(
                    "museum", optional=True, tooltip="A museum out of this graph, to be viewed instead of a file."
                ),
            ],
            outputs=[
                io.Model.Output("viewing_model", display_name="model", tooltip="The model, showing the exhibits."),
                io.Clip.Output("viewing_clip", display_name="clip", tooltip="The text encoder, knowing their words."),
                MUSEUM.Output("viewed_museum", display_name="museum", tooltip="The exhibits, to go on teaching from."),
            ],
        )

    @classmethod
    def validate_inputs(cls, museum_name: str) -> bool:
        """Which file there is matters only where no museum is connected, which `execute` sees."""
        return True

    @classmethod
    def fingerprint_inputs(cls, museum_name: str, **others: object) -> str:
        """Changes when the file does."""
        return folders.museum_version(museum_name)

    @classmethod
    def execute(cls, model, clip, museum_name: str, exhibits: str, strength: float, museum=None) -> io.NodeOutput:
        from .actions.museums import shown

        return io.NodeOutput(*shown(model, clip, museum, museum_name, exhibits, strength))


class SaveMuseum(io.ComfyNode):
    """Write a museum to its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_SaveMuseum",
            "C-LoRA Save Museum",
            "Write a museum into models/loras/museums. The file is also an ordinary LoRA: other loaders show all of it "
            "but word-gated exhibits.",
            search_aliases=["save lora", "export lora", "c-lora", "concepts"],
            inputs=[
                MUSEUM.Input("museum", tooltip="What the last Train Step returned."),
                io.String.Input(
                    "name",
                    default="my",
                    tooltip="“my” becomes my.museum.safetensors; people/my puts it into a folder.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Whether a file of that name may be replaced; the old one is kept beside it as ….backup.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, museum, name: str, overwrite: bool) -> io.NodeOutput:
        from .actions.museums import saved

        return io.NodeOutput(ui=ui.PreviewText(say(saved(museum, name, overwrite))))
