"""C-LoRA Edit Museum: rename, remove, move, merge."""

from comfy_api.latest import io

from .host.progress import say
from .sockets import MUSEUM, described


class EditMuseum(io.ComfyNode):
    """Change what a museum holds, without touching what was learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_EditMuseum",
            "C-LoRA Edit Museum",
            "Rename, remove, move and merge exhibits, and set how strongly they show. The museum that comes in stays "
            "as it was, and so does everything that was learned.",
            search_aliases=["merge lora", "rename", "remove concept", "lora strength", "c-lora", "museum"],
            inputs=[
                MUSEUM.Input("museum", tooltip="The museum to change, from a Train Step or a Load Museum."),
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
                    tooltip="A second museum over the same model, whose exhibits are added after the edits.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Pictures for thumbnail lines, which count them from 1."
                ),
            ],
            outputs=[MUSEUM.Output("edited_museum", display_name="museum", tooltip="The museum after all edits.")],
        )

    @classmethod
    def execute(cls, museum, edits: str, other=None, images=None) -> io.NodeOutput:
        from .actions.museums import changed

        museum, summary = changed(museum, edits, other, images)
        say(summary)
        return io.NodeOutput(museum)
