"""C-LoRA Companion: another concept for a Train Step to learn at the same time."""

from collections.abc import Sequence

from comfy_api.latest import io

from .actions.inputs import ConceptInputs
from .sockets import COMPANIONS, CONCEPT, node_schema


class CompanionConcept(io.ComfyNode):
    """Adds one concept to a list of companions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_Companion",
            "C-LoRA Companion",
            "Another concept for a Train Step to learn at the same time as its own (joint learning). You can chain "
            "several. Training takes as many steps and as much rank as one Train Step per concept would.",
            search_aliases=["joint training", "multi concept", "several concepts", "train together", "c-lora"],
            inputs=[
                CONCEPT.Input("concept", tooltip="The trigger word, from a Concept Token."),
                io.Image.Input("images", tooltip="Pictures of the concept, as in a Train Step."),
                io.String.Input(
                    "captions",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="One line per picture, in order, with {word} for the trigger word. If empty, uses the "
                    "concept's template.",
                ),
                COMPANIONS.Input("companions", optional=True, tooltip="More concepts, from another Companion."),
                io.Mask.Input("masks", optional=True, tooltip="One mask per picture, as in a Train Step."),
            ],
            outputs=[
                COMPANIONS.Output(
                    "with_this_one",
                    display_name="companions",
                    tooltip="Connect it to a Train Step or to another Companion.",
                )
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls,
        concept,
        images,
        captions: Sequence[str] = (),
        companions: Sequence[ConceptInputs] = (),
        masks: Sequence[object] = (),
    ) -> io.NodeOutput:
        return io.NodeOutput((*companions, ConceptInputs(concept, images, captions, masks)))
