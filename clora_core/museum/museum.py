"""What was learned: exhibits, in order, over one base."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import BaseModelError, MuseumError
from ..method.recipe import Applied, Recipe
from ..model.attach import attached
from ..model.attachment import Gate
from ..model.base import Base, Fingerprint
from ..model.concept import Concept, ConceptToken, Kind, word_pattern
from ..model.low_rank import LowRank, concatenated
from ..model.projections import Projection

STRENGTH_LIMIT = 100
BESIDE = 32  # a layer-wise word takes 44 MB a prompt on SDXL


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One learned concept: its word, its deltas, and how it was learned.

    facts: plain JSON values for people and managers (date, number of pictures, last loss). thumbnail: a small encoded
    JPEG, or empty. strength: what its deltas are multiplied by wherever the museum is shown or learned upon; the deltas
    themselves stay as they were learned.
    """

    token: ConceptToken
    deltas: Mapping[Projection, LowRank]
    recipe: Recipe
    kind: Kind = "object"
    prompt: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    thumbnail: bytes = b""
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.strength) <= STRENGTH_LIMIT:
            raise MuseumError(
                f"The strength of '{self.word}' is {self.strength}; it must be between -{STRENGTH_LIMIT} and "
                f"{STRENGTH_LIMIT}. 1 shows it as it was learned."
            )

    @property
    def word(self) -> str:
        return self.token.word

    @property
    def gate(self) -> Gate | None:
        """Where its deltas act; None is everywhere."""
        return gate_of(self.word, self.recipe.applied)

    @property
    def scaled_deltas(self) -> dict[Projection, LowRank]:
        """Its deltas times its strength: as they are shown."""
        return {projection: delta.scaled(self.strength) for projection, delta in self.deltas.items()}

    @property
    def rank(self) -> int:
        """The largest rank among the deltas; 0 for a word alone."""
        return max((delta.rank for delta in self.deltas.values()), default=0)

    def same_as(self, other: "Exhibit") -> bool:
        """Whether both show the same: one word, one strength, and bit-equal numbers."""
        if self is other:
            return True
        if (self.word, self.strength) != (other.word, other.strength):
            return False
        if set(self.deltas) != set(other.deltas) or set(self.token.vectors) != set(other.token.vectors):
            return False
        pairs = [(self.token.vectors[name], other.token.vectors[name]) for name in self.token.vectors]
        for projection, delta in self.deltas.items():
            pairs += [(delta.up, other.deltas[projection].up), (delta.down, other.deltas[projection].down)]
        return all(one.shape == theirs.shape and torch.equal(one.cpu(), theirs.cpu()) for one, theirs in pairs)


@dataclass(frozen=True, eq=False)
class Museum:
    """Exhibits in the order in which they were learned. Immutable: every change is a new museum."""

    base: Fingerprint
    exhibits: tuple[Exhibit, ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(exhibit.word for exhibit in self.exhibits)
        if repeated := [word for word, count in counts.items() if count > 1]:
            raise MuseumError(f"The word '{min(repeated)}' names two exhibits. Every exhibit needs a word of its own.")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(exhibit.word for exhibit in self.exhibits)

    @property
    def tokens(self) -> tuple[ConceptToken, ...]:
        return tuple(exhibit.token for exhibit in self.exhibits)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What each exhibit was learned with."""
        return tuple(exhibit.prompt or exhibit.word for exhibit in self.exhibits)

    def prompts_beside(self, concept: Concept) -> tuple[str, ...]:
        """`prompts`; and, for exhibits of that concept's kind, what is said of its pictures with their word in its
        word's place ("a cat in <old> style"), about 32 of these."""
        kin = [exhibit.word for exhibit in self.exhibits if exhibit.kind == concept.kind]
        texts = list(dict.fromkeys(concept.prompts()))
        share = min(len(texts), max(1, BESIDE // max(1, len(kin))))
        new = word_pattern([concept.word])
        beside = [
            new.sub(old, texts[(place * share + number) % len(texts)])
            for number in range(share)
            for place, old in enumerate(kin)
        ]
        return tuple(dict.fromkeys([*self.prompts, *beside]))

    def check_over(self, base: Fingerprint) -> None:
        """Raise BaseModelError unless this museum was made over that base."""
        if self.base != base:
            raise BaseModelError(
                f"This museum was made over '{self.base}', the loaded model is '{base}'. Load the museum's own base, "
                "stored as it was then (bfloat16 rounds what is finer), or start a new museum."
            )

    @property
    def gated(self) -> tuple[Exhibit, ...]:
        """The exhibits that act at their words' places only; they are no part of `deltas` and `dense`."""
        return tuple(exhibit for exhibit in self.exhibits if exhibit.gate)

    def exhibit(self, word: str) -> Exhibit:
        """The exhibit with that word."""
        for exhibit in self.exhibits:
            if exhibit.word == word:
                return exhibit
        raise MuseumError(f"There is no '{word}' in this museum. It holds: {', '.join(self.words) or 'nothing yet'}.")

    def learned_with(self, place: int) -> int:
        """The place of the exhibit that holds the deltas which the one at this place was learned with: its own, but for
        concepts that were learned together, whose deltas stand in the last one of them."""
        while place + 1 < len(self.exhibits) and not (own := self.exhibits[place]).deltas:
            if own.recipe.rank == 0 or own.recipe != self.exhibits[place + 1].recipe:
                break
            place += 1
        return place

    def with_exhibits(self, *exhibits: Exhibit) -> "Museum":
        """This museum and these exhibits after its own."""
        return replace(self, exhibits=(*self.exhibits, *exhibits))

    def only(self, words: Sequence[str]) -> "Museum":
        """The exhibits of these words, in this museum's order."""
        chosen = {self.exhibit(word).word for word in words}
        return replace(self, exhibits=tuple(exhibit for exhibit in self.exhibits if exhibit.word in chosen))

    def deltas(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, LowRank]:
        """projection → Σ of the deltas applied everywhere, exactly, each at its own strength times the given (or 1)."""
        return {projection: concatenated(parts) for projection, parts in self._parts(strengths or {}).items()}

    @torch.no_grad()
    def dense(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, Tensor]:
        """projection → the same sum as one matrix (out, in) float32, of one size however many exhibits there are."""
        matrices = {}
        for projection, parts in self._parts(strengths or {}).items():
            delta = concatenated(parts)
            matrices[projection] = LowRank(delta.up.float(), delta.down.float()).dense()
        return matrices

    def _parts(self, strengths: Mapping[str, float]) -> dict[Projection, list[LowRank]]:
        parts: dict[Projection, list[LowRank]] = {}
        for exhibit in self.exhibits:
            if exhibit.gate:
                continue
            strength = exhibit.strength * strengths.get(exhibit.word, 1.0)
            for projection, delta in exhibit.deltas.items():
                parts.setdefault(projection, []).append(delta.scaled(strength))
        return dict(sorted(parts.items()))


def gate_of(word: str, applied: Applied) -> Gate | None:
    """The gate of a delta that is applied so; None is everywhere."""
    return None if applied == "everywhere" else Gate(word, onwards=applied == "onwards")


@contextmanager
def shown(
    base: Base,
    everywhere: Mapping[Projection, Tensor],
    gated: Sequence[Exhibit] = (),
    strengths: Mapping[str, float] | None = None,
) -> Iterator[None]:
    """While entered, the base shows a museum.

    everywhere: the sum of what is applied everywhere, as `Museum.dense` gives it. gated: the exhibits that act at their
    words' places, each at its own strength times the given one (1 if not given).
    """
    with ExitStack() as views:
        views.enter_context(attached(base, everywhere))
        for exhibit in gated:
            strength = exhibit.strength * (strengths or {}).get(exhibit.word, 1.0)
            deltas = {projection: delta.scaled(strength) for projection, delta in exhibit.deltas.items()}
            views.enter_context(attached(base, deltas, exhibit.gate))
        yield


def wanted(entries: Sequence[str]) -> dict[str, float]:
    """Exhibits as a person names them, "<my-cat>" or "<my-cat>:0.8" → word and strength."""
    chosen = {}
    for entry in entries:
        word, _, strength = entry.partition(":")
        try:
            number = float(strength) if strength else 1.0
        except ValueError:
            number = math.nan
        if not abs(number) <= STRENGTH_LIMIT:
            raise MuseumError(
                f"'{entry}' is no exhibit: write <my-cat> or <my-cat>:0.8, with a strength from -{STRENGTH_LIMIT} to "
                f"{STRENGTH_LIMIT}."
            )
        chosen[word.strip()] = number
    return chosen
