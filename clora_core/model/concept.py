"""What shall be learned, and the word that will stand for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import ConceptError
from ..texts import unprintable

Kind = Literal["object", "style"]
# A style's word stands before what is on the picture: text encoders read forward, so all that follows can tell it from
# another style's (benchmarks/style_words.py).
TEMPLATES: dict[Kind, str] = {"object": "a photo of {word}", "style": "a {word} style picture"}

Tree = dict[str, "Tree"]  # letter → what may follow it
# Characters that prompts use for something else: blanks, weights (word:1.2), alternatives, lists.
FORBIDDEN = re.compile(r"[\s()\[\]{}:,\\|\"]")
TEXT_LIMIT = 10_000  # characters of a template or a caption


@dataclass(frozen=True, eq=False)
class ConceptToken:
    """A word and its vectors.

    vectors: text encoder's name ("clip_l", "clip_g", "clip_h") → (layers, words, width). One layer is the same
    embedding everywhere; as many layers as there are cross-attentions is MuseumMaker's task-wise token. A token of
    several words takes several places in the prompt, the same number for every encoder.
    """

    word: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_word(self.word)
        places = {vectors.shape[:2] for vectors in self.vectors.values() if vectors.ndim == 3}
        if len(places) != 1 or any(vectors.ndim != 3 for vectors in self.vectors.values()):
            shapes = {name: tuple(vectors.shape) for name, vectors in self.vectors.items()}
            raise ConceptError(
                f"The vectors of '{self.word}' have shapes {shapes}; expected (layers, words, width) each."
            )

    @property
    def words(self) -> int:
        """How many places in a prompt the word takes."""
        return next(iter(self.vectors.values())).shape[1]


@dataclass(frozen=True, eq=False)
class Concept:
    """What to learn: a new word, its pictures, and what is said of them.

    pictures: (n, 3, height, width), in [-1, 1]. captions: one per picture with "{word}" or the word itself in it;
    without captions, every picture gets the template. start: "" starts the word from random vectors, as C-LoRA does; an
    existing word starts it from that word's vectors.
    """

    word: str
    pictures: Tensor
    kind: Kind = "object"
    template: str = ""
    captions: tuple[str, ...] = ()
    vectors: int = 1
    start: str = ""
    token_seed: int = 0

    def __post_init__(self) -> None:
        check_word(self.word)
        if self.kind not in TEMPLATES:
            raise ConceptError(f"A concept's kind is 'object' or 'style', not '{self.kind}'.")
        if self.pictures.ndim != 4 or self.pictures.shape[1] != 3 or len(self.pictures) == 0:
            shape = tuple(self.pictures.shape)
            raise ConceptError(f"'{self.word}' needs at least one picture, as (n, 3, height, width); got {shape}.")
        if not self.pictures.isfinite().all():
            raise ConceptError(f"The pictures of '{self.word}' hold values that are not finite numbers.")
        if self.captions and len(self.captions) != len(self.pictures):
            raise ConceptError(
                f"'{self.word}' has {len(self.pictures)} pictures but {len(self.captions)} captions. "
                "Give one caption per picture, or none."
            )
        _check_text(self.start)
        for text in (self.template or TEMPLATES[self.kind], *self.captions):
            _check_text(text)
            check_mentioned(text, self.word)
        if not 1 <= self.vectors <= 16:
            raise ConceptError(f"A word takes 1 to 16 vectors, not {self.vectors}.")

    def prompts(self) -> list[str]:
        """One prompt per picture, the word filled in."""
        texts = self.captions or (self.template or TEMPLATES[self.kind],) * len(self.pictures)
        return [text.replace("{word}", self.word) for text in texts]

    @property
    def prompt(self) -> str:
        """The template with the word filled in."""
        return (self.template or TEMPLATES[self.kind]).replace("{word}", self.word)


def check_word(word: str) -> None:
    """Raise ConceptError for a word that no prompt or no file could hold, or that prompts would read otherwise."""
    if not word or not any(character.isalnum() for character in word):
        raise ConceptError(f"'{word}' is no word. Choose something like <my-cat>.")
    if len(word) > 64:
        raise ConceptError(f"'{word[:64]}…' is longer than 64 characters. Choose something short like <my-cat>.")
    if found := FORBIDDEN.search(word):
        raise ConceptError(
            f"'{word}' holds {found[0]!r}, which prompts use for something else. Try something like <my-cat>."
        )
    if re.fullmatch(r"[+-]?[\d.]+", word):
        raise ConceptError(f"'{word}' would be read as a number. Choose something like <my-cat>.")
    if odd := unprintable(word):
        raise ConceptError(f"{word!r} holds {odd!r}, which is no printable character. Try something like <my-cat>.")


def _check_text(text: str) -> None:
    """Raise ConceptError for a text that no file can hold, or that is longer than any prompt."""
    if odd := unprintable(text, allowed="\t\n\r"):
        raise ConceptError(f"The text {text!r:.100} holds {odd!r}, which is no printable character. Leave it out.")
    if len(text) > TEXT_LIMIT:
        raise ConceptError(f"A text has {len(text)} characters; at most {TEXT_LIMIT} are learned from. Shorten it.")


def mentions(text: str, word: str) -> bool:
    """Whether the word stands in the text by itself: "sks" is not in "masks"."""
    return word_pattern([word]).search(text) is not None


def check_mentioned(template: str, word: str) -> None:
    """Raise ConceptError for a template, with or without {word}, that the word does not stand in by itself."""
    if mentions(template.replace("{word}", word), word):
        return
    if "{word}" in template:
        raise ConceptError(
            f"In '{template}' the word touches other letters, so that '{word}' is not seen in it. Put spaces around "
            f"it, or call it <{word}>."
        )
    raise ConceptError(f"'{template}' does not mention the new word. Write {{word}} where '{word}' belongs.")


def word_pattern(words: list[str]) -> re.Pattern[str]:
    """Matches any of the words where it stands by itself, the longest first.

    A word's own first and last character say where it ends: <cat> may touch letters, as in "two <cat>s" and in writing
    without spaces, while "sks" is not in "masks".
    """
    tree: Tree = {}
    for word in words:
        branch = tree
        for character in word:
            branch = branch.setdefault(character, {})
        branch[""] = {}
    return re.compile(_alternatives(tree, start=True))


def _alternatives(tree: Tree, *, start: bool = False, ends: str = "") -> str:
    """A pattern of the words whose letters the tree holds, the longest first.

    Words share their beginnings, so that a place in a text is looked at once however many words there are. "" is where
    a word ends. start: the tree holds first letters. ends: what must follow a word that ends here.
    """
    found = []
    for character, branch in tree.items():
        if character:
            letter = re.match(r"\w", character)
            before = r"(?<!\w)" if start and letter else ""
            found.append(before + re.escape(character) + _alternatives(branch, ends=r"(?!\w)" if letter else ""))
    if "" in tree:
        found.append(ends)
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"
