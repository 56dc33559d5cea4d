"""A concept to learn, and its trigger word."""

import difflib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..errors import ConceptError
from ..pictures import Picture, Size, in_memory
from ..texts import normal, unprintable

Kind = Literal["object", "style"]
# A style's word comes before the content of the picture: text encoders read forward, so the states of all later words
# depend on it (benchmarks/style_words.py).
TEMPLATES: dict[Kind, str] = {"object": "a photo of {word}", "style": "a {word} style picture"}

Tree = dict[str, "Tree"]  # letter → the letters that can follow
# Characters with a meaning in prompts: blanks, weights (word:1.2), alternatives, lists.
FORBIDDEN = re.compile(r"[\s()\[\]{}:,\\|\"]")
BRACKETED = re.compile(r"<[^<>\s:]+>")  # what looks like a learned word; not A1111's <lora:name:1>
TEXT_LIMIT = 10_000  # characters of a template or a caption


@dataclass(frozen=True, eq=False)
class ConceptToken:
    """A trigger word, in `texts.normal` form, and its vectors.

    vectors: name of the text encoder ("clip_l", "clip_g", "clip_h") → (layers, words, width). With one layer, all
    cross-attentions read the same embedding; one layer per cross-attention is MuseumMaker's task-wise token. A token of
    several words takes several places in the prompt, the same number for every encoder. clip_skip: the layer of the
    text encoders that it was learned with, counted from the end; None if that is not known. phrase: the known words
    that it stands for, and whose vectors it has; "" for learned vectors.
    """

    word: str
    vectors: Mapping[str, Tensor]
    clip_skip: int | None = None
    phrase: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "word", normal(self.word))
        check_word(self.word)
        places = {vectors.shape[:2] for vectors in self.vectors.values() if vectors.ndim == 3}
        if len(places) != 1 or any(vectors.ndim != 3 for vectors in self.vectors.values()):
            shapes = {name: tuple(vectors.shape) for name, vectors in self.vectors.items()}
            raise ConceptError(
                f"The vectors of '{self.word}' have shapes {shapes}; expected (layers, words, width) each."
            )

    @property
    def layers(self) -> int:
        return next(iter(self.vectors.values())).shape[0]

    @property
    def words(self) -> int:
        """The number of places that the word takes in a prompt."""
        return next(iter(self.vectors.values())).shape[1]

    def check_fits(self, widths: Mapping[str, int]) -> None:
        """Raise ConceptError unless it has vectors for each of these text encoders, name → width."""
        own = {name: vectors.shape[-1] for name, vectors in self.vectors.items()}
        if any(own.get(name) != width for name, width in widths.items()):
            known, expected = (", ".join(f"{n} ({width} wide)" for n, width in each.items()) for each in (own, widths))
            raise ConceptError(
                f"'{self.word}' has vectors for {known}, but this model's text encoders are {expected}. Use the word "
                "with the base model that it was learned on."
            )


@dataclass(frozen=True, eq=False)
class Concept:
    """What to learn: a new word, its pictures and their captions. All texts are kept in `texts.normal` form.

    pictures: of any sizes; or a tensor (n, 3, height, width) in [-1, 1]. captions: one per picture, each with "{word}"
    or the word itself, of one or several lines; "" for the template, which every picture gets without captions.
    vectors: of the new word; 0 for as many as the start word has, or as suit the model's family. start: an existing
    word whose vectors the new word starts from; "" for random vectors, as in C-LoRA.
    """

    word: str
    pictures: Sequence[Picture]
    kind: Kind = "object"
    template: str = ""
    captions: tuple[str, ...] = ()
    vectors: int = 1
    start: str = ""
    token_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("word", "template", "start"):
            object.__setattr__(self, name, normal(getattr(self, name)))
        object.__setattr__(self, "captions", tuple(map(normal, self.captions)))
        check_word(self.word)
        if self.kind not in TEMPLATES:
            raise ConceptError(f"A concept's kind is 'object' or 'style', not '{self.kind}'.")
        if isinstance(self.pictures, Tensor):
            if self.pictures.ndim != 4 or self.pictures.shape[1] != 3:
                shape = tuple(self.pictures.shape)
                raise ConceptError(f"The pictures of '{self.word}' must be (n, 3, height, width), not {shape}.")
            object.__setattr__(self, "pictures", in_memory(self.pictures))
        if not self.pictures:
            raise ConceptError(f"'{self.word}' needs at least one picture.")
        if self.captions and len(self.captions) != len(self.pictures):
            raise ConceptError(
                f"'{self.word}' has {len(self.pictures)} pictures but {len(self.captions)} captions. "
                "Give one caption per picture, or none."
            )
        check_text(self.start)
        for text in (self.template or TEMPLATES[self.kind], *filter(None, self.captions)):
            check_text(text)
            check_mentioned(text, self.word)
        if not 0 <= self.vectors <= 16:
            raise ConceptError(f"A word takes 1 to 16 vectors, or 0 for auto, not {self.vectors}.")

    def prompts(self) -> list[str]:
        """One prompt per picture, on one line, with the word filled in."""
        if not self.captions:
            return [self.prompt] * len(self.pictures)
        return [" ".join(self.lines(caption)) or self.prompt for caption in self.captions]

    def lines(self, caption: str) -> list[str]:
        """The lines of a caption, with the word filled in; empty ones are left out."""
        return [line.strip() for line in caption.replace("{word}", self.word).splitlines() if line.strip()]

    @property
    def size(self) -> Size:
        """(height, width) of most of its pictures, in pixels."""
        return Counter(picture.size for picture in self.pictures).most_common(1)[0][0]

    def frozen(self) -> "Concept":
        """The same with a word that stands for known words: those of `start`, or the word without its brackets."""
        return replace(self, start=self.start or self.word.strip("<>"), vectors=0)

    @property
    def prompt(self) -> str:
        """The template, with the word filled in."""
        return (self.template or TEMPLATES[self.kind]).replace("{word}", self.word)


def largest(concepts: Iterable[Concept]) -> Size:
    """(height, width) of the largest picture."""
    return max((picture.size for concept in concepts for picture in concept.pictures), key=math.prod)


def unknown_words(prompt: str, known: Sequence[str]) -> list[str]:
    """A sentence for every word in angle brackets that is not one of these, with the nearest one that is."""
    spelled = {normal(word) for word in known}
    unknown = [word for word in dict.fromkeys(BRACKETED.findall(normal(prompt))) if word not in spelled]
    shown = f"It shows: {', '.join(known) or 'no words'}."
    return [f"The museum does not show {word}. {did_you_mean(word, known) or shown}" for word in unknown]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A question with the most similar of the known words, brackets aside; "" if none is similar."""
    bare = {normal(other).lower().strip("<>"): other for other in known}
    near = difflib.get_close_matches(word.lower().strip("<>"), list(bare), n=1)
    return f"Did you mean {bare[near[0]]}?" if near else ""


def unknown_start(text: str, encoder: str, is_known: Callable[[str], bool]) -> ConceptError:
    """The error about the first of these words that a text encoder does not know."""
    unknown = next((word for word in text.split() if not is_known(word)), text)
    return ConceptError(
        f"The text encoder {encoder} does not know '{unknown}'. Choose another start, or leave it empty and train the "
        "word, from random vectors (token: learned)."
    )


def skip_note(tokens: Iterable[ConceptToken], clip_skip: int) -> str:
    """A sentence about the words that were learned with another CLIP skip than this one; "" if there are none."""
    others = {token.word: token.clip_skip for token in tokens if token.clip_skip not in (None, clip_skip)}
    if not others:
        return ""
    learned = ", ".join(f"{word} (CLIP skip {skip})" for word, skip in others.items())
    skip = next(iter(others.values()))
    return (
        f"Learned with another CLIP skip than {clip_skip}: {learned}. They may look different. Set stop_at_clip_layer "
        f"of CLIP Set Last Layer to -{skip}, or add --clip-skip {skip} to the command."
    )


def check_word(word: str) -> None:
    """Raise ConceptError for a word that prompts or files cannot contain, or that prompts would read differently."""
    if not any(character.isalnum() for character in word):
        what = f"'{word}' has no letter or digit" if word else "The word is empty"
        raise ConceptError(f"{what}. Choose a word like <my-cat>.")
    if len(word) > 64:
        raise ConceptError(f"'{word[:64]}…' is longer than 64 characters. Choose a short word like <my-cat>.")
    if match := FORBIDDEN.search(word):
        raise ConceptError(
            f"'{word}' contains {match[0]!r}, which has a special meaning in prompts. Choose a word like <my-cat>."
        )
    if re.fullmatch(r"[+-]?[\d.]+", word):
        raise ConceptError(f"'{word}' would be read as a number. Choose a word like <my-cat>.")
    if character := unprintable(word):
        raise ConceptError(f"{word!r} contains the unprintable character {character!r}. Choose a word like <my-cat>.")


def check_text(text: str) -> None:
    """Raise ConceptError for a text that a file cannot contain, or that is longer than any prompt."""
    if character := unprintable(text, allowed="\t\n\r"):
        raise ConceptError(f"The text {text!r:.100} contains the unprintable character {character!r}. Remove it.")
    if len(text) > TEXT_LIMIT:
        raise ConceptError(f"A text has {len(text)} characters; the limit is {TEXT_LIMIT}. Shorten it.")


def mentions(text: str, word: str, known: Iterable[str] = ()) -> bool:
    """Whether the text contains the word on its own: "sks" is not in "masks".

    known: other words; where a longer one of them stands, the word does not: "sks" is not in a known "sks-dog".
    """
    return any(found == normal(word) for found in words_in(text, [word, *known]))


def words_in(text: str, words: Iterable[str]) -> list[str]:
    """The words in the text in order, in `normal` form; where several match, the longest one."""
    return _pattern(tuple(map(normal, words))).findall(normal(text))


def readable(text: str, pattern: re.Pattern[str]) -> str:
    """The text with the parts between blanks in `normal` form that match; all others are read as without the words."""
    if text.isascii():
        return text
    return re.sub(r"\S+", lambda part: own if pattern.search(own := normal(part[0])) else part[0], text)


def with_word(text: str, old: str, new: str, known: Iterable[str]) -> str:
    """The text with one word replaced by another where it is itself, and not the beginning of another known one."""
    pattern = _pattern(tuple(map(normal, (old, *known))))
    return pattern.sub(lambda match: new if match[0] == normal(old) else match[0], normal(text))


@functools.lru_cache(maxsize=8)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return word_pattern(list(words))


def check_mentioned(template: str, word: str) -> None:
    """Raise ConceptError if the template, with {word} filled in, does not contain the word on its own."""
    if mentions(template.replace("{word}", word), word):
        return
    if "{word}" in template:
        raise ConceptError(
            f"In '{template}' the word touches other letters, so '{word}' is not recognized there. Put spaces around "
            f"it, or name it <{word}>."
        )
    raise ConceptError(f"'{template}' does not mention the new word. Write {{word}} where '{word}' belongs.")


def word_pattern(words: list[str]) -> re.Pattern[str]:
    """Matches any of the words on its own, the longest first.

    The first and last character of a word decide where it ends: <cat> can touch letters, as in "two <cat>s" and in
    scripts without spaces, while "sks" is not in "masks".
    """
    tree: Tree = {}
    for word in words:
        branch = tree
        for character in word:
            branch = branch.setdefault(character, {})
        branch[""] = {}
    return re.compile(_alternatives(tree, start=True))


def _alternatives(tree: Tree, *, start: bool = False, ends: str = "") -> str:
    """A pattern for the words in the tree, the longest first.

    Words share their beginnings, so every place in a text is matched once, for any number of words. "" marks the end of
    a word. start: whether these are first letters. ends: what must follow a word that ends here.
    """
    patterns = []
    for character, branch in tree.items():
        if character:
            letter = re.match(r"\w", character)
            before = r"(?<!\w)" if start and letter else ""
            patterns.append(before + re.escape(character) + _alternatives(branch, ends=r"(?!\w)" if letter else ""))
    if "" in tree:
        patterns.append(ends)
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
