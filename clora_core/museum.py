"""What was learned: exhibits, in order, over one base."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .attach import Gate, attached
from .base import Base, Fingerprint
from .concept import ConceptToken, Kind
from .errors import BaseModelError, MuseumError
from .low_rank import LowRank, concatenated
from .projections import Projection
from .recipe import Applied, Recipe


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One learned concept: its word, its deltas, and how it was learned.

    facts: plain JSON values for people and managers (date, number of pictures, last loss). thumbnail: a small encoded
    JPEG, or empty.
    """

    token: ConceptToken
    deltas: Mapping[Projection, LowRank]
    recipe: Recipe
    kind: Kind = "object"
    prompt: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    thumbnail: bytes = b""

    @property
    def word(self) -> str:
        return self.token.word

    @property
    def gate(self) -> Gate | None:
        """Where its deltas act; None is everywhere."""
        return gate_of(self.word, self.recipe.applied)

    @property
    def rank(self) -> int:
        """The largest rank among the deltas; 0 for a word alone."""
        return max((delta.rank for delta in self.deltas.values()), default=0)


@dataclass(frozen=True, eq=False)
class Museum:
    """Exhibits in the order in which they were learned. Immutable: every change is a new museum."""

    base: Fingerprint
    exhibits: tuple[Exhibit, ...] = ()

    def __post_init__(self) -> None:
        words = [exhibit.word for exhibit in self.exhibits]
        if repeated := {word for word in words if words.count(word) > 1}:
            raise MuseumError(f"The word '{min(repeated)}' names two exhibits. Every exhibit needs a word of its own.")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(exhibit.word for exhibit in self.exhibits)

    @property
    def tokens(self) -> tuple[ConceptToken, ...]:
        return tuple(exhibit.token for exhibit in self.exhibits)

    def check_over(self, base: Fingerprint) -> None:
        """Raise BaseModelError unless this museum was made over that base."""
        if self.base != base:
            raise BaseModelError(
                f"This museum was made over '{self.base}', the loaded model is '{base}'. "
                "Load the museum's own base, or start a new museum."
            )

    def exhibit(self, word: str) -> Exhibit:
        """The exhibit with that word."""
        for exhibit in self.exhibits:
            if exhibit.word == word:
                return exhibit
        raise MuseumError(f"There is no '{word}' in this museum. It holds: {', '.join(self.words) or 'nothing yet'}.")

    def with_exhibit(self, exhibit: Exhibit) -> "Museum":
        """This museum and one more exhibit."""
        return replace(self, exhibits=(*self.exhibits, exhibit))

    def only(self, words: Sequence[str]) -> "Museum":
        """The exhibits of these words, in this museum's order."""
        chosen = {self.exhibit(word).word for word in words}
        return replace(self, exhibits=tuple(exhibit for exhibit in self.exhibits if exhibit.word in chosen))

    def deltas(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, LowRank]:
        """projection → Σ of all exhibits' deltas, exactly, each times its strength (1 if not given)."""
        strengths = strengths or {}
        parts: dict[Projection, list[LowRank]] = {}
        for exhibit in self.exhibits:
            if exhibit.gate:
                continue
            for projection, delta in exhibit.deltas.items():
                parts.setdefault(projection, []).append(delta.scaled(strengths.get(exhibit.word, 1.0)))
        return {projection: concatenated(deltas) for projection, deltas in sorted(parts.items())}

    def dense(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, Tensor]:
        """projection → the same sum as one matrix (out, in) float32, of one size however many exhibits there are."""
        with torch.no_grad():
            return {
                projection: LowRank(delta.up.float(), delta.down.float()).dense()
                for projection, delta in self.deltas(strengths).items()
            }


def gate_of(word: str, applied: Applied) -> Gate | None:
    """The gate of a delta that is applied so; None is everywhere."""
    return None if applied == "everywhere" else Gate(word, onwards=applied == "from its word on")


@contextmanager
def shown(base: Base, museum: Museum, strengths: Mapping[str, float] | None = None) -> Iterator[None]:
    """While entered, the base shows the museum, each exhibit at its strength (1 if not given) and at its places."""
    with ExitStack() as views:
        views.enter_context(attached(base, museum.dense(strengths)))
        for exhibit in museum.exhibits:
            if exhibit.gate:
                strength = (strengths or {}).get(exhibit.word, 1.0)
                deltas = {projection: delta.scaled(strength) for projection, delta in exhibit.deltas.items()}
                views.enter_context(attached(base, deltas, exhibit.gate))
        yield


def wanted(entries: Sequence[str]) -> dict[str, float]:
    """Exhibits as a person names them, "<my-cat>" or "<my-cat>:0.8" → word and strength."""
    chosen = {}
    for entry in entries:
        word, _, strength = entry.partition(":")
        try:
            chosen[word.strip()] = float(strength) if strength else 1.0
        except ValueError:
            raise MuseumError(f"'{entry}' is no exhibit: write <my-cat> or <my-cat>:0.8.") from None
    return chosen
