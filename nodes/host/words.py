"""Let a CLIP understand learned words as plain words of a prompt.

Each text encoder's tokenizer gets one in front of it that puts a word's vectors where the word stands and leaves the
text around it alone. Weights such as `(<my-cat>:1.2)` are taken off before that by ComfyUI itself.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.sd
import comfy.sd1_clip
from torch import nn

from ...clora_core.errors import BaseModelError, ConceptError
from ...clora_core.model import families
from ...clora_core.model.concept import ConceptToken, word_pattern
from .conditioning import Piece, saying_more, saying_no_more, spelled

CLIP = comfy.sd.CLIP


def with_words(clip: CLIP, tokens: Sequence[ConceptToken]) -> CLIP:
    """A clone of the CLIP whose prompts may hold these words, besides those it already knows.

    A word that it already knows is replaced. Raises ConceptError for vectors that do not fit its text encoders.
    """
    for token in tokens:
        check_fits(token, widths(clip))
    return _speaking(clip, {**known_words(clip), **{token.word: token for token in tokens}})


def without_words(clip: CLIP, words: Iterable[str]) -> CLIP:
    """A clone that does not know these words."""
    dropped = set(words)
    return _speaking(clip, {word: token for word, token in known_words(clip).items() if word not in dropped})


def known_words(clip: CLIP) -> dict[str, ConceptToken]:
    """The learned words that this CLIP understands."""
    words: dict[str, ConceptToken] = {}
    for tokenizer in tokenizers(clip).values():
        if isinstance(tokenizer.tokenizer, Speaking):
            words |= tokenizer.tokenizer.tokens
    return words


def tokenizers(clip: CLIP) -> dict[str, comfy.sd1_clip.SDTokenizer]:
    """The tokenizer of each text encoder by the encoder's name ("clip_l")."""
    parts = vars(clip.tokenizer).items()
    return {name: part for name, part in parts if isinstance(part, comfy.sd1_clip.SDTokenizer)}


def encoders(clip: CLIP) -> dict[str, comfy.sd1_clip.SDClipModel]:
    """The text encoders by name, in the order in which the UNet reads their states.

    Raises BaseModelError where there are none, as with text encoders that are no CLIP.
    """
    parts = clip.cond_stage_model.named_children()
    found = {name: part for name, part in parts if isinstance(part, comfy.sd1_clip.SDClipModel)}
    if not found or set(found) - set(tokenizers(clip)):
        raise BaseModelError(
            f"The text encoder {type(clip.cond_stage_model).__name__} is none that C-LoRA knows. Use the CLIP that "
            f"belongs to a model of {', '.join(family.title for family in families.FAMILIES)}."
        )
    return found


def table(encoder: comfy.sd1_clip.SDClipModel) -> nn.Embedding:
    """The encoder's word table, (words, width)."""
    return encoder.transformer.get_input_embeddings()


def widths(clip: CLIP) -> dict[str, int]:
    """Each text encoder's name → the width of its words."""
    return {name: table(encoder).weight.shape[1] for name, encoder in encoders(clip).items()}


def check_fits(token: ConceptToken, expected: Mapping[str, int]) -> None:
    """Raise ConceptError unless the word has vectors of that width for each of these text encoders."""
    found = {name: vectors.shape[-1] for name, vectors in token.vectors.items()}
    if any(found.get(name) != width for name, width in expected.items()):
        raise ConceptError(
            f"'{token.word}' has vectors for {_listed(found)}, but this model's text encoders are {_listed(expected)}. "
            "Use the word over the base that it was learned over."
        )


@dataclass(frozen=True, eq=False)
class Speaking:
    """A tokenizer that knows some words more. It answers as the one behind it does: start, ids, end.

    begin, end: how many special ids stand before and after the text's own.
    """

    plain: Callable[..., Mapping[str, list[int]]]
    name: str
    begin: int
    end: int
    tokens: Mapping[str, ConceptToken]

    def __call__(self, text: str, **options: Any) -> dict[str, list[Piece]]:
        empty = self.plain("", **options)["input_ids"]
        return {"input_ids": [*empty[: self.begin], *self.pieces(text, **options), *empty[len(empty) - self.end :]]}

    def pieces(self, text: str, **options: Any) -> list[Piece]:
        """The text's own ids, and the vectors of the words in it."""
        pieces: list[Piece] = []
        read = 0
        for match in self.pattern.finditer(text) if self.tokens else ():
            pieces += self._ids(text[read : match.start()], **options)
            pieces += spelled(self.tokens[match[0]], self.name)
            read = match.end()
        return pieces + self._ids(text[read:], **options)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Made once, since ComfyUI has a prompt tokenized word by word."""
        return word_pattern(list(self.tokens))

    def _ids(self, text: str, **options: Any) -> list[int]:
        ids = self.plain(text, **options)["input_ids"]
        return list(ids[self.begin : len(ids) - self.end])

    def get_vocab(self) -> dict[str, int]:
        """Without the words that it knows: some hosts look a word up here before they have it tokenized."""
        vocabulary = dict(self.plain.get_vocab())
        for word in self.tokens:
            vocabulary.pop(f"{word}</w>", None)
        return vocabulary

    def from_pretrained(self, *path: Any, **options: Any) -> "Speaking":
        """Itself: some hosts make the tokenizer anew, from its class, wherever a CLIP is cloned."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked of it, the tokenizer behind it answers."""
        if name == "plain" or name.startswith("__"):  # asked while this is being copied, before there is one
            raise AttributeError(name)
        return getattr(self.plain, name)


def speaking(name: str, tokenizer: comfy.sd1_clip.SDTokenizer, tokens: Mapping[str, ConceptToken]) -> Speaking:
    """What tokenizes for that text encoder, with these words and no others."""
    plain = tokenizer.tokenizer.plain if isinstance(tokenizer.tokenizer, Speaking) else tokenizer.tokenizer
    return Speaking(plain, name, tokenizer.tokens_start, int(tokenizer.tokenizer_adds_end_token), dict(tokens))


def _speaking(clip: CLIP, tokens: Mapping[str, ConceptToken]) -> CLIP:
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for name, tokenizer in tokenizers(clip).items():
        part = copy.copy(tokenizer)
        part.tokenizer = part.tokenizer_class = speaking(name, tokenizer, tokens)
        setattr(clone.tokenizer, name, part)
    return saying_more(clone) if tokens else saying_no_more(clone)


def _listed(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({width} wide)" for name, width in found.items())
