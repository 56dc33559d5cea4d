"""Concept Token: the trigger word that a Train Step teaches."""

import torch
from comfy_api.latest import io

from ..clora_core.model.concept import TEMPLATES, Concept
from .sockets import CONCEPT, node_schema, seed_input

PLACEHOLDER = torch.zeros(1, 3, 1, 1)  # a Train Step replaces it by the concept's pictures


class ConceptTokenNode(io.ComfyNode):
    """A new word and the template of its captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_ConceptToken",
            "Concept Token",
            "A trigger word for a Train Step to teach. Afterwards, use it in prompts like any other word.",
            search_aliases=["new word", "trigger word", "placeholder", "textual inversion", "dreambooth", "c-lora"],
            inputs=[
                io.String.Input(
                    "word",
                    default="<my-cat>",
                    tooltip="The trigger word. It cannot contain spaces, round, square or curly brackets, colons, "
                    "commas, double quotes, \\ or |, and cannot be a number. Angle brackets keep it apart from "
                    "ordinary words.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(TEMPLATES),
                    default="object",
                    tooltip="What the pictures have in common: an object (a thing, an animal, a person) or a style.",
                ),
                io.String.Input(
                    "template",
                    default=TEMPLATES["object"],
                    tooltip="The caption of every picture during training, unless you connect captions. {word} stands "
                    "for the trigger word. C-LoRA does not name the class: leave out “cat”. For the kind “style”, the "
                    f"default becomes “{TEMPLATES['style']}”.",
                ),
                io.Int.Input(
                    "vectors",
                    default=0,
                    min=0,
                    max=16,
                    tooltip="Number of tokens that the word takes up in a prompt; 0 is auto. More hold "
                    "more detail but leave less room.",
                ),
                io.String.Input(
                    "start",
                    default="",
                    tooltip="One or two words that the model knows and that describe the concept, such as black cat, "
                    "to start from: on the built-in model, half of the steps were almost enough. If empty, training "
                    "starts from random vectors, as in the C-LoRA paper. For models with a large text encoder, the "
                    "trigger word stands for these words, or for its own name.",
                ),
                seed_input("token_seed", "Seed of the random start vectors."),
            ],
            outputs=[
                CONCEPT.Output("concept", tooltip="Connect it to a Train Step."),
                io.String.Output("prompt", tooltip="The template with the word filled in, for a text encoder."),
            ],
        )

    @classmethod
    def execute(cls, word: str, kind: str, template: str, vectors: int, start: str, token_seed: int) -> io.NodeOutput:
        own = "" if template.strip() in ("", TEMPLATES["object"]) else template.strip()
        concept = Concept(word.strip(), PLACEHOLDER, kind, own, (), vectors, start.strip(), token_seed)
        return io.NodeOutput(concept, concept.prompt)
