"""C-LoRA Companion: one more concept for a Train Step to learn at the same time as its own."""

from collections.abc import Sequence

from comfy_api.latest import io

from .actions.draft import Companion
from .sockets import COMPANIONS, CONCEPT, described, one_each_but


class CompanionConcept(io.ComfyNode):
    """A concept that is learned together with others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_Companion",
            "C-LoRA Companion",
            "One more concept for a Train Step to learn at the same time as its own (joint learning). Chain several. "
            "It takes all the steps and the ranks that they would have had one after another.",
            search_aliases=["joint training", "multi concept", "several concepts", "train together", "c-lora"],
            inputs=[
                CONCEPT.Input("concept", tooltip="The new word, from a Concept Token."),
                io.Image.Input("images", tooltip="Pictures of the concept, as for a Train Step."),
                io.String.Input(
                    "captions",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Empty: the concept's template. Otherwise one line per picture, in their order, with "
                    "{word} where the new word belongs.",
                ),
                COMPANIONS.Input("companions", optional=True, tooltip="From another Companion, where there are more."),
            ],
            outputs=[
                COMPANIONS.Output(
                    "with_this_one",
                    display_name="companions",
                    tooltip="For a Train Step, or for another Companion.",
                )
            ],
            is_input_list=True,
        )

    @classmethod
    @one_each_but("images", "captions")
    def execute(
        cls, concept, images, captions: Sequence[str] = (), companions: Sequence[Companion] = ()
    ) -> io.NodeOutput:
        return io.NodeOutput((*companions, Companion(concept, images, captions)))
