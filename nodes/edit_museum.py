"""C-LoRA Edit Museum: rename, remove, move and merge exhibits."""

from collections.abc import Sequence

from comfy_api.latest import io

from .host.progress import say
from .sockets import MUSEUM, node_schema


class EditMuseum(io.ComfyNode):
    """Changes what a museum contains; learned weights stay as they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_EditMuseum",
            "C-LoRA Edit Museum",
            "Rename, remove, reorder and merge exhibits, and set their default strength. The connected museum and the "
            "learned weights do not change.",
            search_aliases=["merge lora", "rename", "remove concept", "lora strength", "c-lora", "museum"],
            inputs=[
                MUSEUM.Input("museum", tooltip="The museum to edit, from a Train Step or a Load Museum."),
                io.String.Input(
                    "edits",
                    default="",
                    multiline=True,
                    tooltip="One edit per line: rename <cat> <tom>, remove <cat>, move <cat> 1, strength <cat> 0.8, "
                    "thumbnail <cat> 1 (the first of the connected images).",
                ),
                MUSEUM.Input(
                    "other",
                    optional=True,
                    tooltip="A second museum for the same model. Its exhibits are added after the edits.",
                ),
                io.Image.Input("images", optional=True, tooltip="Pictures for the thumbnail lines, numbered from 1."),
            ],
            outputs=[MUSEUM.Output("edited_museum", display_name="museum", tooltip="The museum after all edits.")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, museum, edits: str, other=None, images: Sequence[object] = ()) -> io.NodeOutput:
        from .actions.museums import edit

        museum, summary = edit(museum, edits, other, images)
        say(summary)
        return io.NodeOutput(museum)
