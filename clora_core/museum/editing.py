"""Edit a museum. Every edit returns a new museum and leaves all tensors as they are.

An edit can be written as a line of text:

    rename <a> <b>      move <a> 1      strength <a> 0.8      remove <a>
"""

import datetime
import itertools
from dataclasses import replace
from typing import TypeVar

from ..errors import MuseumError
from ..model.concept import Concept, check_mentioned, mentions, with_word
from ..pictures import thumbnail
from ..texts import normal
from .museum import Exhibit, Museum, learned_with
from .overlap import overlap_matrix

THUMBNAIL = "thumbnail"  # a fact: "replaced" if it is not of a picture that was learned from
COMPARED = 8  # exhibits; on SDXL, each takes a second
SYNTAX = "rename <a> <b>, move <a> 1, strength <a> 0.8, thumbnail <a> 1, remove <a>"

Number = TypeVar("Number", int, float)


def edited(museum: Museum, line: str) -> tuple[Museum, str]:
    """The museum after the edit in this line, and a message about it. Raises MuseumError for an invalid line."""
    match normal(line).split():
        case ["rename", old, new]:
            return renamed(museum, old, new), f"'{old}' is now '{new}'."
        case ["move", word, place]:
            return reordered(museum, word, _number(place, int, line)), f"'{word}' is now exhibit {place}."
        case ["strength", word, strength]:
            museum = with_strength(museum, word, _number(strength, float, line))
            return museum, f"The strength of '{word}' is now {museum.exhibit(word).strength:g}."
        case ["remove", word]:
            return removed(museum, word), removal_message(museum, word)
    raise MuseumError(f"'{line}' is not a valid edit. Write one of: {SYNTAX}.")


def renamed(museum: Museum, old: str, new: str) -> Museum:
    """Give the exhibit another word, also in all prompts that contain the old one. Raises ConceptError for a word that
    is not recognized there."""
    exhibit, new = museum.exhibit(old), normal(new)
    exhibits = list(museum.exhibits)
    exhibits[exhibits.index(exhibit)] = replace(exhibit, token=replace(exhibit.token, word=new))
    for place, other in enumerate(exhibits):
        if mentions(other.prompt, old):
            template = with_word(other.prompt, old, "{word}", museum.words)
            if template != other.prompt:
                check_mentioned(template, new)
            exhibits[place] = replace(other, prompt=template.replace("{word}", new))
    return replace(museum, exhibits=tuple(exhibits))


def reordered(museum: Museum, word: str, place: int) -> Museum:
    """Move the exhibit to another place; 1 is the first."""
    exhibit = museum.exhibit(word)
    if not 1 <= place <= len(museum.exhibits):
        raise MuseumError(f"'{word}' cannot move to place {place}; the places are 1 to {len(museum.exhibits)}.")
    others = removed(museum, word).exhibits
    return replace(museum, exhibits=(*others[: place - 1], exhibit, *others[place - 1 :]))


def with_strength(museum: Museum, word: str, strength: float) -> Museum:
    """Set the exhibit's default strength; 1 is as it was learned. Raises MuseumError if another holds its deltas."""
    exhibit = museum.exhibit(word)
    holder = museum.exhibits[learned_with(museum.exhibits, museum.exhibits.index(exhibit))]
    if holder is not exhibit:
        raise MuseumError(
            f"'{word}' was learned together with '{holder.word}', which holds the weights of both. Set the strength of "
            f"'{holder.word}'."
        )
    return _with(museum, replace(exhibit, strength=strength))


def with_thumbnail(museum: Museum, word: str, jpeg: bytes) -> Museum:
    """Give the exhibit another thumbnail, a small JPEG as made by `pictures.thumbnail`."""
    exhibit = museum.exhibit(word)
    return _with(museum, replace(exhibit, thumbnail=jpeg, facts={**exhibit.facts, THUMBNAIL: "replaced"}))


def with_thumbnails_of(museum: Museum, earlier: Museum) -> Museum:
    """The museum with the thumbnails that were replaced in `earlier`, with which it begins, and not again since."""
    exhibits = list(museum.exhibits)
    for place, old in enumerate(earlier.exhibits):
        if THUMBNAIL in old.facts and THUMBNAIL not in exhibits[place].facts:
            facts = {**exhibits[place].facts, THUMBNAIL: old.facts[THUMBNAIL]}
            exhibits[place] = replace(exhibits[place], thumbnail=old.thumbnail, facts=facts)
    return replace(museum, exhibits=tuple(exhibits))


def dated(exhibit: Exhibit, concept: Concept) -> Exhibit:
    """A newly learned exhibit with today's date, and the concept's first picture as its thumbnail."""
    return replace(exhibit, facts={**exhibit.facts, "date": now()}, thumbnail=thumbnail(concept.pictures[0].read()))


def now() -> str:
    """The current date and time, UTC, for an exhibit's facts."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def removed(museum: Museum, word: str) -> Museum:
    """Remove the exhibit; all others stay as they are."""
    exhibit = museum.exhibit(word)
    return replace(museum, exhibits=tuple(other for other in museum.exhibits if other is not exhibit))


def merged(museum: Museum, other: Museum) -> Museum:
    """The exhibits of both museums, those of `other` last. An exhibit that is the same in both is kept once.

    Raises MuseumError for museums of different bases, or for a word that both use for different exhibits.
    """
    if museum.base != other.base:
        raise MuseumError(
            f"One museum was made for '{museum.base}', the other for '{other.base}'. Only museums for the same base "
            "can be merged."
        )
    known = {exhibit.word: exhibit for exhibit in museum.exhibits}
    if clashes := [e.word for e in other.exhibits if e.word in known and not e.same_as(known[e.word])]:
        raise MuseumError(
            f"The museums have different exhibits named {', '.join(clashes)}. Rename or remove one of them first, for "
            f"example: rename {clashes[0]} {_free(clashes[0], (*museum.words, *other.words))}"
        )
    return museum.with_exhibits(*(exhibit for exhibit in other.exhibits if exhibit.word not in known))


def removal_message(museum: Museum, word: str) -> str:
    """What removing this exhibit changes for the others.

    For the next `COMPARED` exhibits, first those that change the same projections, it gives the cosine of |Δ|
    (`overlap.overlap_matrix`). For deltas of random numbers that is about 2/π, the mean of |x·y| over that of x² for
    independent normal x and y.
    """
    message, place = f"'{word}' is removed.", museum.words.index(museum.exhibit(word).word)
    others = [n for n in range(len(museum.words)) if n != place and learned_with(museum.exhibits, n) == place]
    partners = [museum.words[n] for n in others]
    if partners:
        message += f" It held the weights that {', '.join(partners)} learned together with it; they lose these."
    changed = set(museum.exhibits[place].deltas)
    later = sorted(museum.exhibits[place + 1 :], key=lambda other: changed.isdisjoint(other.deltas))
    compared = [other.word for other in later[:COMPARED]]
    overlaps = {other: float(overlap_matrix(museum.only([word, other]))[0, 1]) for other in compared}
    if not any(overlaps.values()):
        return f"{message} No later exhibit changes the same weights."
    numbers = ", ".join(f"{other} {overlap:.2f}" for other, overlap in overlaps.items())
    numbers += f", and {len(later) - COMPARED} more" * (len(later) > COMPARED)
    return (
        f"{message} Later exhibits may build on it and look different without it. Their overlap with it (0: different "
        f"weights, 0.6: chance, 1: the same weights): {numbers}. Their own weights do not change."
    )


def _with(museum: Museum, exhibit: Exhibit) -> Museum:
    return replace(museum, exhibits=tuple(exhibit if e.word == exhibit.word else e for e in museum.exhibits))


def _free(word: str, words: tuple[str, ...]) -> str:
    """<my-cat> → <my-cat-2>, or the next number that is free."""
    stem, end = (word[:-1], ">") if word.endswith(">") else (word, "")
    names = (f"{stem}-{number}{end}" for number in itertools.count(2))
    return next(name for name in names if name not in words)


def _number(text: str, kind: type[Number], line: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        number = "whole number" if kind is int else "number"
        raise MuseumError(f"'{text}' in '{line}' is not a {number}. Write one of: {SYNTAX}.") from None
