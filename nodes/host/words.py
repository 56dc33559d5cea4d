"""Make learned words work like ordinary words in a prompt.

Each text encoder's tokenizer is wrapped by one that replaces a learned word by its vectors and leaves the rest of the
text alone. ComfyUI itself removes weights such as `(<my-cat>:1.2)` before that.
"""

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.sd
import comfy.sd1_clip
from torch import nn

from ...clora_core.errors import BaseModelError
from ...clora_core.model import families
from ...clora_core.model.concept import ConceptToken, readable, unknown_words, word_pattern
from .apart import Clauses
from .conditioning import Piece, mark_words, pieces_of, standing, unmark_words
from .progress import warn

CLIP = comfy.sd.CLIP


def with_words(clip: CLIP, tokens: Sequence[ConceptToken], *, apart: Collection[str] = ()) -> CLIP:
    """A clone of the CLIP that knows these words too; a known word is replaced.

    apart: the words that are encoded by themselves if a prompt has several of them. Raises ConceptError for vectors
    that do not fit its text encoders.
    """
    return _with_vocabulary(clip, _vocabulary(clip, tokens), apart)


def speaking_copy(clip: CLIP, tokens: Sequence[ConceptToken]) -> CLIP:
    """`with_words` for one encoding: the copy shares the clip's patcher, and reports nothing."""
    return _copied(clip, _vocabulary(clip, tokens))


def without_words(clip: CLIP, words: Iterable[str]) -> CLIP:
    """A clone of the CLIP that does not know these words."""
    removed = set(words)
    return _with_vocabulary(clip, {word: token for word, token in known_words(clip).items() if word not in removed})


def known_words(clip: CLIP) -> dict[str, ConceptToken]:
    """The learned words that this CLIP knows."""
    words: dict[str, ConceptToken] = {}
    for tokenizer in tokenizers(clip).values():
        if isinstance(tokenizer.tokenizer, WordTokenizer):
            words |= tokenizer.tokenizer.tokens
    return words


def tokenizers(clip: CLIP) -> dict[str, comfy.sd1_clip.SDTokenizer]:
    """The tokenizer of each text encoder by the encoder's name ("clip_l", "t5xxl")."""
    return {_encoder_name(clip, attribute): part for attribute, part in _tokenizers(clip).items()}


def _tokenizers(clip: CLIP) -> dict[str, comfy.sd1_clip.SDTokenizer]:
    parts = vars(clip.tokenizer).items()
    return {attribute: part for attribute, part in parts if isinstance(part, comfy.sd1_clip.SDTokenizer)}


def _encoder_name(clip: CLIP, attribute: str) -> str:
    """ComfyUI calls the tokenizer of a model with one T5 "clip_t5xxl", and its encoder "t5xxl"."""
    name = attribute.removeprefix("clip_")
    return name if hasattr(clip.cond_stage_model, name) else attribute


def encoders(clip: CLIP) -> dict[str, comfy.sd1_clip.SDClipModel]:
    """The text encoders by name, in the order in which the UNet reads their states.

    Raises BaseModelError if there are none, for example for T5.
    """
    parts = clip.cond_stage_model.named_children()
    encoders = {name: part for name, part in parts if isinstance(part, comfy.sd1_clip.SDClipModel)}
    if not encoders or set(encoders) - set(tokenizers(clip)):
        raise BaseModelError(
            f"C-LoRA does not support the text encoder {type(clip.cond_stage_model).__name__}. Use the CLIP that "
            f"belongs to a model of {', '.join(family.title for family in families.FAMILIES)}."
        )
    return encoders


def table(encoder: comfy.sd1_clip.SDClipModel) -> nn.Embedding:
    """The encoder's word embeddings, (words, width)."""
    return encoder.transformer.get_input_embeddings()


def widths(clip: CLIP) -> dict[str, int]:
    """Name of each text encoder → width of its word embeddings."""
    return {name: table(encoder).weight.shape[1] for name, encoder in encoders(clip).items()}


@dataclass(frozen=True, eq=False)
class WordTokenizer:
    """A tokenizer with learned words. Like the plain one, it returns the start id, the text's ids and the end id.

    begin, end: the number of special ids before and after the text's own. note: reports words in angle
    brackets that are not among the learned ones.
    """

    plain: Callable[..., Mapping[str, list[int]]]
    name: str
    begin: int
    end: int
    tokens: Mapping[str, ConceptToken]
    note: Callable[[str], object] | None = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[Piece]]:
        empty = self.plain("", **options)["input_ids"]
        return {"input_ids": [*empty[: self.begin], *self.pieces(text, **options), *empty[len(empty) - self.end :]]}

    def pieces(self, text: str, **options: Any) -> list[Piece]:
        """The text's own ids, the vectors of learned words, and the ids that frozen ones stand for."""
        text = readable(text, self.pattern) if self.tokens else text
        if self.note and self.tokens and "<" in text:
            for sentence in unknown_words(text, list(self.tokens)):
                self.note(sentence)
        pieces: list[Piece] = []
        position = 0
        for match in self.pattern.finditer(text) if self.tokens else ():
            before, token = text[position : match.start()], self.tokens[match[0]]
            pieces += self._ids(self._before(before), **options)
            pieces += self._frozen(token, before, **options) if token.phrase else pieces_of(token, self.name)
            position = match.end()
        return pieces + self._ids(text[position:], **options)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Cached, because ComfyUI tokenizes a prompt word by word."""
        return word_pattern(list(self.tokens))

    def _frozen(self, token: ConceptToken, before: str, **options: Any) -> list[Piece]:
        """The ids of a frozen word's phrase, with the space that `_before` leaves out."""
        return standing(token, self._ids(before[len(self._before(before)) :] + token.phrase, **options))

    def _before(self, text: str) -> str:
        """The text before a word. In the vocabularies of LLMs a space belongs to the word after it."""
        return text if self.name.startswith("clip_") else text.rstrip(" ")

    def _ids(self, text: str, **options: Any) -> list[int]:
        ids = self.plain(text, **options)["input_ids"]
        return list(ids[self.begin : len(ids) - self.end])

    def get_vocab(self) -> dict[str, int]:
        """Without the learned words: some hosts look up a word here before they tokenize it."""
        vocabulary = dict(self.plain.get_vocab())
        for word in self.tokens:
            vocabulary.pop(f"{word}</w>", None)
        return vocabulary

    def from_pretrained(self, *path: Any, **options: Any) -> "WordTokenizer":
        """Returns itself: some hosts recreate the tokenizer from its class whenever a CLIP is cloned."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Everything else comes from the plain tokenizer."""
        if name == "plain" or name.startswith("__"):  # during a copy, before `plain` is set
            raise AttributeError(name)
        return getattr(self.plain, name)


def word_tokenizer(
    name: str, tokenizer: comfy.sd1_clip.SDTokenizer, tokens: Mapping[str, ConceptToken]
) -> WordTokenizer:
    """The tokenizer of this text encoder with exactly these learned words."""
    plain = tokenizer.tokenizer.plain if isinstance(tokenizer.tokenizer, WordTokenizer) else tokenizer.tokenizer
    return WordTokenizer(plain, name, tokenizer.tokens_start, int(tokenizer.tokenizer_adds_end_token), dict(tokens))


def _vocabulary(clip: CLIP, tokens: Sequence[ConceptToken]) -> dict[str, ConceptToken]:
    """The words that the clip knows, and these. Raises ConceptError for vectors that do not fit."""
    for token in tokens:
        token.check_fits(widths(clip))
    return {**known_words(clip), **{token.word: token for token in tokens}}


def _copied(clip: CLIP, tokens: Mapping[str, ConceptToken], note: Callable[[str], object] | None = None) -> CLIP:
    """A copy of the clip with exactly these learned words. Some hosts' own clone reads files, or fails with Anima's."""
    copied = copy.copy(clip)
    copied.tokenizer = copy.copy(clip.tokenizer)
    for attribute, tokenizer in _tokenizers(clip).items():
        part = copy.copy(tokenizer)
        own = word_tokenizer(_encoder_name(clip, attribute), tokenizer, tokens)
        part.tokenizer = part.tokenizer_class = replace(own, note=note)
        setattr(copied.tokenizer, attribute, part)
    return copied


def _with_vocabulary(clip: CLIP, tokens: Mapping[str, ConceptToken], apart: Collection[str] = ()) -> CLIP:
    clone = _copied(clip, tokens, note=warn)
    clone.patcher = clip.patcher.clone()
    if tokens:
        mark_words(clone, Clauses(apart, tokenizers(clone)).of if apart else None)
    else:
        unmark_words(clone)
    return clone
