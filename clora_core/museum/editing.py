"""Change what a museum holds, losslessly: every edit gives a new museum, and no tensor is touched.

An edit can be written in words, one per line:

    rename <a> <b>      move <a> 1      strength <a> 0.8      remove <a>
"""

import datetime
from dataclasses import replace
from typing import TypeVar

from ..errors import MuseumError
from ..model.concept import Concept, word_pattern
from ..pictures import thumbnail
from .museum import Exhibit, Museum
from .overlap import overlap_matrix

SYNTAX = "rename <a> <b>, move <a> 1, strength <a> 0.8, thumbnail <a> 1, remove <a>"

Number = TypeVar("Number", int, float)


def edited(museum: Museum, line: str) -> tuple[Museum, str]:
    """The museum after one edit in words, and a sentence that says what it did."""
    match line.split():
        case ["rename", old, new]:
            return renamed(museum, old, new), f"'{old}' is '{new}' now."
        case ["move", word, place]:
            return moved(museum, word, _number(place, int, line)), f"'{word}' is exhibit {place} now."
        case ["strength", word, strength]:
            changed = with_strength(museum, word, _number(strength, float, line))
            return changed, f"'{word}' is shown at strength {changed.exhibit(word).strength:g} now."
        case ["remove", word]:
            return without(museum, word), what_removing_does(museum, word)
    raise MuseumError(f"'{line}' is no edit. Write one of: {SYNTAX}.")


def renamed(museum: Museum, old: str, new: str) -> Museum:
    """The exhibit under another word, also in the prompts of all that mention it."""
    exhibit, pattern = museum.exhibit(old), word_pattern([old])

    def after(each: Exhibit) -> Exhibit:
        if each is exhibit:
            each = replace(each, token=replace(each.token, word=new))
        if pattern.search(each.prompt):
            each = replace(each, prompt=pattern.sub(lambda _: new, each.prompt))
        return each

    return replace(museum, exhibits=tuple(map(after, museum.exhibits)))


def moved(museum: Museum, word: str, place: int) -> Museum:
    """The exhibit at another place, 1 being the first."""
    exhibit = museum.exhibit(word)
    if not 1 <= place <= len(museum.exhibits):
        raise MuseumError(f"There is no place {place} for '{word}'; this museum has 1 to {len(museum.exhibits)}.")
    others = [other for other in museum.exhibits if other is not exhibit]
    return replace(museum, exhibits=(*others[: place - 1], exhibit, *others[place - 1 :]))


def with_strength(museum: Museum, word: str, strength: float) -> Museum:
    """The exhibit shown at this strength wherever nothing else is said. 1 is as it was learned."""
    return _with(museum, word, replace(museum.exhibit(word), strength=strength))


def with_thumbnail(museum: Museum, word: str, jpeg: bytes) -> Museum:
    """The exhibit with another small JPEG, as `pictures.thumbnail` makes it."""
    return _with(museum, word, replace(museum.exhibit(word), thumbnail=jpeg))


def labelled(exhibit: Exhibit, concept: Concept) -> Exhibit:
    """What was just learned of the concept, with the date and a small copy of its first picture."""
    return replace(exhibit, facts={**exhibit.facts, "date": now()}, thumbnail=thumbnail(concept.pictures[0]))


def now() -> str:
    """The date among an exhibit's facts, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def without(museum: Museum, word: str) -> Museum:
    """All other exhibits, as they are."""
    exhibit = museum.exhibit(word)
    return replace(museum, exhibits=tuple(other for other in museum.exhibits if other is not exhibit))


def merged(museum: Museum, other: Museum) -> Museum:
    """Both museums' exhibits, those of `other` after those of `museum`; one that is the same in both stands there once.

    Raises MuseumError for museums over different bases, and for a word that means something else in each.
    """
    if museum.base != other.base:
        raise MuseumError(
            f"One museum was made over '{museum.base}', the other over '{other.base}'. Only those of one base fit "
            "together."
        )
    known = {exhibit.word: exhibit for exhibit in museum.exhibits}
    if clashes := [e.word for e in other.exhibits if e.word in known and not e.same_as(known[e.word])]:
        raise MuseumError(
            f"Both museums have a {', a '.join(clashes)} of their own. Rename or remove one of each first, such as: "
            f"rename {clashes[0]} {_free(clashes[0], (*museum.words, *other.words))}"
        )
    new = tuple(exhibit for exhibit in other.exhibits if exhibit.word not in known)
    return replace(museum, exhibits=(*museum.exhibits, *new))


def overlap_with_later(museum: Museum, word: str) -> dict[str, float]:
    """Each exhibit that came after this one → the cosine of |Δ| (`measure.overlap_matrix`).

    Deltas of random numbers have about 2/π, the mean of |x·y| over that of x² for independent normal x and y.
    """
    later = museum.words[museum.words.index(museum.exhibit(word).word) + 1 :]
    return {other: float(overlap_matrix(museum.only([word, other]))[0, 1]) for other in later}


def what_removing_does(museum: Museum, word: str) -> str:
    """What the others are without this exhibit, in sentences."""
    said, own = f"'{word}' is removed.", museum.words.index(museum.exhibit(word).word)
    if together := [museum.words[place] for place in range(own) if museum.learned_with(place) == own]:
        said += f" It held what {', '.join(together)} learned together with it, and with it they lose that."
    overlaps = overlap_with_later(museum, word)
    if not any(overlaps.values()):
        return f"{said} No later exhibit moves the same weights."
    overlapping = ", ".join(f"{other} {overlap:.2f}" for other, overlap in overlaps.items())
    return (
        f"{said} Later exhibits may have been learned on top of it and look different without it. They overlap with it "
        f"(0: apart, 0.6: by chance, 1: the same weights): {overlapping}. Their own numbers stay as they are."
    )


def _with(museum: Museum, word: str, exhibit: Exhibit) -> Museum:
    return replace(museum, exhibits=tuple(exhibit if e.word == word else e for e in museum.exhibits))


def _free(word: str, taken: tuple[str, ...]) -> str:
    """<my-cat> → <my-cat-2>, or the next number that is free."""
    stem, end = (word[:-1], ">") if word.endswith(">") else (word, "")
    number = 2
    while f"{stem}-{number}{end}" in taken:
        number += 1
    return f"{stem}-{number}{end}"


def _number(text: str, kind: type[Number], line: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise MuseumError(f"'{text}' in '{line}' is no number. Write one of: {SYNTAX}.") from None
