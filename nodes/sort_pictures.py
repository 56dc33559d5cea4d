"""C-LoRA Sort Pictures: which class of a museum each picture belongs to."""

from collections.abc import Sequence

from comfy_api.latest import io

from .host import folders
from .host.progress import say
from .sockets import node_schema


class SortPictures(io.ComfyNode):
    """Classifies pictures with a museum of classes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_SortPictures",
            "C-LoRA Sort Pictures",
            "Classify pictures with a museum of classes, which the command `classify learn` creates.",
            search_aliases=["classify", "image classifier", "tag", "sort images", "vit", "dinov2", "c-lora"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures: a batch, or a list of any sizes."),
                io.Combo.Input(
                    "museum_name",
                    options=folders.museum_names() or [""],  # the frontend drops an input without options
                    tooltip="A museum of classes in models/loras/museums.",
                ),
                io.Combo.Input(
                    "network",
                    options=folders.vision_names(),
                    tooltip="The vision transformer that the museum was trained on: starter, or a transformers folder "
                    "in models/clip_vision.",
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="One line per picture: up to five of its likeliest classes."),
                io.String.Output(
                    "classes",
                    is_output_list=True,
                    tooltip="The likeliest class of each picture.",
                ),
                io.Float.Output(
                    "shares",
                    is_output_list=True,
                    tooltip="The share of that class, 0 to 1. Shares rank classes; they are not probabilities.",
                ),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, museum_name: str, network: str) -> bool:
        """Turns off ComfyUI's own check: `execute` says which files there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, museum_name: Sequence[str | None], **others: object) -> str:
        """Changes whenever the museum's file does. With is_input_list, inputs are lists; a linked one holds None."""
        return folders.museum_version(museum_name[0])

    @classmethod
    def execute(cls, images, museum_name: str, network: str) -> io.NodeOutput:
        from .actions.sorting import sort_pictures

        text, classes, shares = sort_pictures(images, museum_name, network)
        return io.NodeOutput(text, classes, shares, ui={"text": (say(text),)})
