"""C-LoRA Load Museum and C-LoRA Save Museum: read and write museum files."""

from comfy_api.latest import io, ui

from ..clora_core.errors import CLoRAError
from .host import folders
from .sockets import MUSEUM, node_schema


class LoadMuseum(io.ComfyNode):
    """Makes a model show a museum, with its words available in every prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_LoadMuseum",
            "C-LoRA Load Museum",
            "Apply a museum to a model and its text encoder. Its trigger words then work in ordinary prompts.",
            search_aliases=["load lora", "lora loader", "apply museum", "embedding", "c-lora", "concepts"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the museum was trained on."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Combo.Input(
                    "museum_name",
                    options=folders.museum_names() or [""],  # the frontend drops an input without options
                    tooltip="A file in models/loras/museums. Ignored if a museum is connected.",
                ),
                io.String.Input(
                    "exhibits",
                    default="",
                    multiline=True,
                    tooltip="If empty, shows all exhibits. Otherwise one word per line, with an optional strength: "
                    "<my-cat> or <my-cat>: 0.8.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of all exhibits: 1 is as learned. At 0, the words work but the model is "
                    "unchanged.",
                ),
                MUSEUM.Input("museum", optional=True, tooltip="A museum from this graph, used instead of a file."),
                io.Boolean.Input(
                    "keep_apart",
                    optional=True,
                    default=False,
                    tooltip="Keep several words in one prompt apart: each gets an equal strip of the picture, left to "
                    "right in their order (top to bottom if the picture is tall). Prompts with one word stay as they "
                    "are.",
                ),
            ],
            outputs=[
                io.Model.Output("viewing_model", display_name="model", tooltip="The model with the exhibits."),
                io.Clip.Output("viewing_clip", display_name="clip", tooltip="The text encoder with their words."),
                MUSEUM.Output("viewed_museum", display_name="museum", tooltip="The exhibits, for another Train Step."),
            ],
        )

    @classmethod
    def validate_inputs(cls, museum_name: str) -> bool:
        """Turns off ComfyUI's own check: a missing file only matters if no museum is connected. `execute` checks."""
        return True

    @classmethod
    def fingerprint_inputs(cls, museum_name: str | None, **others: object) -> str:
        """Changes whenever the file does. A linked input is None."""
        return folders.museum_version(museum_name)

    @classmethod
    def execute(
        cls, model, clip, museum_name: str, exhibits: str, strength: float, museum=None, keep_apart: bool = False
    ) -> io.NodeOutput:
        from .actions.museums import load_and_view

        return io.NodeOutput(*load_and_view(model, clip, museum, museum_name, exhibits, strength, keep_apart))


class SaveMuseum(io.ComfyNode):
    """Writes a museum to its file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_SaveMuseum",
            "C-LoRA Save Museum",
            "Save a museum to models/loras/museums. The file is also an ordinary LoRA: other loaders show every "
            "exhibit except word-gated ones.",
            search_aliases=["save lora", "export lora", "c-lora", "concepts"],
            inputs=[
                MUSEUM.Input("museum", tooltip="The museum to save, from the last Train Step."),
                io.String.Input(
                    "name", default="my", tooltip="“my” becomes my.museum.safetensors; people/my saves it in a folder."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace an existing file of that name if this museum begins with its exhibits. The "
                    "old file is kept next to it as ….backup.",
                ),
                io.Boolean.Input(
                    "replace",
                    optional=True,
                    default=False,
                    tooltip="Replace the file even if this museum does not begin with its exhibits. The old "
                    "file is kept next to it as ….backup.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Checks the name and the disk before anything runs. Without a text, `name` is linked (None)."""
        try:
            if isinstance(name, str):
                folders.check_new_museum(name)
        except CLoRAError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **others: object) -> str:
        """Changes whenever the file does, so that one that was deleted or replaced is written again."""
        return folders.saved_version(name)

    @classmethod
    def execute(cls, museum, name: str, overwrite: bool, replace: bool = False) -> io.NodeOutput:
        from .actions.museums import save

        return io.NodeOutput(ui=ui.PreviewText(save(museum, name, overwrite, replace)))
