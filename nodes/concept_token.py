"""Concept Token: the new word that a Train Step will teach."""

from comfy_api.latest import io

from ..clora_core.model.concept import TEMPLATES
from .actions.draft import ConceptDraft
from .sockets import CONCEPT, SEED_MAX, described


class ConceptToken(io.ComfyNode):
    """A new word and what is said of its pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_ConceptToken",
            "Concept Token",
            "A new word for a Train Step to teach. Use it in prompts afterwards, as you use any other word.",
            search_aliases=["new word", "trigger word", "placeholder", "textual inversion", "dreambooth", "c-lora"],
            inputs=[
                io.String.Input(
                    "word",
                    default="<my-cat>",
                    tooltip="The new word. Anything without blanks, brackets, colons and commas that is no number; "
                    "angle brackets keep it apart from ordinary words.",
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
                    tooltip="What is said of every picture while the word is learned, where there are no captions. "
                    "{word} stands for the new word. C-LoRA leaves out what kind of thing it is: no “cat”. With kind "
                    f"“style”, the usual template is taken as “{TEMPLATES['style']}”.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="How many places the word takes in a prompt. More hold more detail and leave less room.",
                ),
                io.String.Input(
                    "start",
                    default="",
                    tooltip="A word that the model knows, to start from. Empty: random, as in the C-LoRA paper.",
                ),
                io.Int.Input(
                    "token_seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    tooltip="Another number gives the word another random start.",
                ),
            ],
            outputs=[
                CONCEPT.Output("concept", display_name="concept", tooltip="For the Train Step that teaches it."),
                io.String.Output(
                    "prompt", display_name="prompt", tooltip="The template with the word in it, for a text encoder."
                ),
            ],
        )

    @classmethod
    def execute(cls, word: str, kind: str, template: str, vectors: int, start: str, token_seed: int) -> io.NodeOutput:
        own = "" if template.strip() in ("", TEMPLATES["object"]) else template.strip()
        concept = ConceptDraft(word.strip(), kind, own, vectors, start.strip(), token_seed)
        return io.NodeOutput(concept, concept.prompt)
