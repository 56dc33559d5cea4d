"""A museum: the learned exhibits, in order, for one base."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import BaseModelError, MuseumError
from ..method.recipe import Applied, Recipe
from ..model.attach import attached
from ..model.attachment import Gate
from ..model.base import Base, Fingerprint
from ..model.concept import Concept, ConceptToken, Kind, did_you_mean, with_word
from ..model.low_rank import LowRank, Matrix, Weighted, compact, concatenated, weighted_sum
from ..model.projections import Projection
from ..seeds import bytes_of
from ..texts import normal

Part = TypeVar("Part")

STRENGTH_LIMIT = 100
STOPPED = "stopped"  # the fact that holds why a training ended
CLIP_SKIP = "clip skip"  # the fact that holds a token's `clip_skip`
PHRASE = "stands for"  # the fact that holds a token's `phrase`
TOGETHER = "together"  # the fact that exhibits which were learned together have in common
WHOLE = 2**22  # values of a projection up to which `compact` keeps matrices whole: 16 MiB. No UNet has larger ones
EXTRA_PROMPTS = 32  # of `prompts_beside`; with a layer-wise word, SDXL needs 44 MB per prompt


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One learned concept: its word, its deltas, and how it was learned.

    facts: plain JSON values for users and LoRA managers (date, number of pictures, last loss). thumbnail: a small
    JPEG, or empty. strength: the factor on the deltas wherever the museum is viewed or extended; the stored deltas
    do not include it.
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
                f"{STRENGTH_LIMIT}. The default is 1."
            )

    @property
    def word(self) -> str:
        return self.token.word

    @property
    def gate(self) -> Gate | None:
        """Where its deltas act; None is everywhere."""
        return gate_of(self.word, self.recipe.applied)

    def scaled(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, LowRank]:
        """Its deltas times its strength, and times that of its word in `strengths` (default 1)."""
        return {
            projection: delta.scaled(strength) for projection, (delta, strength) in self.weighted(strengths).items()
        }

    def weighted(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, Weighted]:
        """What `scaled` multiplies."""
        strength = self.strength * (strengths or {}).get(self.word, 1.0)
        return {projection: (delta, strength) for projection, delta in self.deltas.items()}

    @property
    def rank(self) -> int:
        """The highest rank of its deltas; 0 for a word without deltas."""
        return max((delta.rank for delta in self.deltas.values()), default=0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its vectors and its deltas as they were learned, in hexadecimal."""
        digest = hashlib.sha256()
        named = dict(self.token.vectors)
        for projection, delta in self.deltas.items():
            named |= {f"{projection.path}.up": delta.up, f"{projection.path}.down": delta.down}
        for name, tensor in sorted(named.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def same_as(self, other: "Exhibit") -> bool:
        """Whether both have the same word and strength, and bit-equal vectors and deltas."""
        if self is other:
            return True
        if (self.word, self.strength) != (other.word, other.strength):
            return False
        if set(self.deltas) != set(other.deltas) or set(self.token.vectors) != set(other.token.vectors):
            return False
        pairs = [(self.token.vectors[name], other.token.vectors[name]) for name in self.token.vectors]
        for projection, delta in self.deltas.items():
            pairs += [(delta.up, other.deltas[projection].up), (delta.down, other.deltas[projection].down)]
        return all(a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


class Described(Protocol):
    """What both an exhibit and its entry in a file's header tell. rank: 0 without deltas."""

    @property
    def word(self) -> str: ...

    @property
    def rank(self) -> int: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def facts(self) -> Mapping[str, object]: ...


def learned_with(exhibits: Sequence[Described], place: int) -> int:
    """The place of the exhibit that holds the deltas of the exhibit at this place: usually its own. Concepts that were
    learned together share deltas, which one of them holds; in files that do not say which, the last of several in a
    row with the same recipe."""
    own = exhibits[place]
    if own.rank or own.recipe.rank == 0:
        return place
    if TOGETHER in own.facts:
        group = own.facts[TOGETHER]
        return next((n for n, other in enumerate(exhibits) if other.rank and other.facts.get(TOGETHER) == group), place)
    end = place
    while end + 1 < len(exhibits) and not exhibits[end].rank and exhibits[end + 1].recipe == own.recipe:
        end += 1
    return end


def complete_at(exhibits: Sequence[Described], place: int) -> int:
    """How many exhibits it takes, from the first, until the one at this place and its deltas are among them."""
    return max(place, learned_with(exhibits, place)) + 1


def missing_partners(exhibits: Sequence[Described], words: Collection[str]) -> str:
    """A sentence about those of the words whose deltas belong to an exhibit that is not among them; "" without any."""
    holders = {own.word: exhibits[learned_with(exhibits, place)].word for place, own in enumerate(exhibits)}
    alone = {word: holder for word, holder in holders.items() if word in words and holder not in words}
    return " ".join(
        f"{word} was learned together with {holder}, which holds the weights of both, so {word} needs {holder} as well."
        for word, holder in alone.items()
    )


@dataclass(frozen=True, eq=False)
class Museum:
    """Exhibits in the order in which they were learned. Immutable: every change makes a new museum."""

    base: Fingerprint
    exhibits: tuple[Exhibit, ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(exhibit.word for exhibit in self.exhibits)
        if repeated := [word for word, count in counts.items() if count > 1]:
            raise MuseumError(f"Two exhibits have the word '{min(repeated)}'. Every exhibit needs a unique word.")

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(exhibit.word for exhibit in self.exhibits)

    @property
    def tokens(self) -> tuple[ConceptToken, ...]:
        return tuple(exhibit.token for exhibit in self.exhibits)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt that each exhibit was learned with."""
        return tuple(exhibit.prompt or exhibit.word for exhibit in self.exhibits)

    def prompts_beside(self, concept: Concept) -> tuple[str, ...]:
        """`prompts`, and at most 32 of the concept's captions with its word replaced by that of an exhibit of the same
        kind ("a cat in <old> style"); of more exhibits, evenly spread ones."""
        same = [exhibit.word for exhibit in self.exhibits if exhibit.kind == concept.kind]
        count = min(len(same), EXTRA_PROMPTS)
        words = [same[number * len(same) // count] for number in range(count)]
        captions = list(dict.fromkeys(concept.prompts()))
        share = min(len(captions), EXTRA_PROMPTS // max(1, count))
        extra = [
            with_word(captions[(place * share + number) % len(captions)], concept.word, word, self.words)
            for number in range(share)
            for place, word in enumerate(words)
        ]
        return tuple(dict.fromkeys([*self.prompts, *extra]))

    def check_over(self, base: Fingerprint) -> None:
        """Raise BaseModelError unless this museum was made for that base."""
        self.check_family(base)
        if self.base != base:
            raise BaseModelError(
                f"This museum was made for '{self.base}', but the loaded model is '{base}'. It can be extended "
                "or evaluated only with its own base, in the original precision (bfloat16 is a different model). Load "
                "that base, or start a new museum. To show it, any checkpoint of the same family will do; to learn "
                "on another one, allow that: other_checkpoint on Train Step, --other-checkpoint for learn."
            )

    def check_family(self, base: Fingerprint) -> None:
        """Raise BaseModelError unless that base is of the family that this museum was made for."""
        if self.base.family != base.family:
            raise BaseModelError(
                f"This museum was made for a model of the family '{self.base.family}', but the loaded model is of the "
                f"family '{base.family}'. Load a model of the museum's family, or start a new museum."
            )

    def shown_over(self, base: Fingerprint) -> str:
        """A note if this museum is shown with another checkpoint of its family; "" with its own.

        Raises BaseModelError for a base of another family.
        """
        self.check_family(base)
        if self.base == base:
            return ""
        return (
            f"This museum was trained on another checkpoint ({self.base}; this model is {base}), so its concepts may "
            "look different. Lower or raise their strength if needed."
        )

    def begins_with(self, earlier: "Museum") -> bool:
        """Whether this museum starts with all exhibits of the earlier one, for the same base."""
        return (
            self.base == earlier.base
            and len(self.exhibits) >= len(earlier.exhibits)
            and all(a.same_as(b) for a, b in zip(self.exhibits, earlier.exhibits, strict=False))
        )

    @property
    def gated(self) -> tuple[Exhibit, ...]:
        """The exhibits that act at their words only. `deltas`, `dense` and `compact` do not include them."""
        return tuple(exhibit for exhibit in self.exhibits if exhibit.gate)

    def exhibit(self, word: str) -> Exhibit:
        """The exhibit with that word."""
        own = normal(word)
        for exhibit in self.exhibits:
            if exhibit.word == own:
                return exhibit
        advice = did_you_mean(own, self.words) or f"It holds: {', '.join(self.words) or 'nothing yet'}."
        raise MuseumError(f"There is no '{word}' in this museum. {advice}")

    def with_exhibits(self, *exhibits: Exhibit) -> "Museum":
        """This museum with these exhibits appended."""
        return replace(self, exhibits=(*self.exhibits, *exhibits))

    def only(self, words: Sequence[str]) -> "Museum":
        """The exhibits of these words, in this museum's order."""
        chosen = {self.exhibit(word).word for word in words}
        return replace(self, exhibits=tuple(exhibit for exhibit in self.exhibits if exhibit.word in chosen))

    def deltas(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, LowRank]:
        """projection → the exact sum of all deltas that act everywhere.

        Each is scaled by its own strength times that of its word in `strengths` (default 1).
        """
        return {projection: weighted_sum(parts) for projection, parts in self.summands(strengths).items()}

    def summands(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, list[Weighted]]:
        """projection → what `deltas` sums: the exhibits' own tensors, not copies, each with its strength."""
        return gathered(exhibit.weighted(strengths) for exhibit in self.exhibits if not exhibit.gate)

    @torch.no_grad()
    def dense(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, Tensor]:
        """projection → the same sum as one dense matrix (out, in), float32."""
        return {place: weighted_sum(parts).in_float32().dense() for place, parts in self.summands(strengths).items()}

    @torch.no_grad()
    def compact(self, strengths: Mapping[str, float] | None = None) -> dict[Projection, Matrix]:
        """The same sums: whole up to `WHOLE` values, larger ones as factors while these take less memory."""
        summands = self.summands(strengths)
        return {place: compact(weighted_sum(parts), whole=WHOLE) for place, parts in summands.items()}


def summed(deltas: Iterable[Mapping[Projection, LowRank]]) -> dict[Projection, LowRank]:
    """projection → Σ of its deltas, exactly, as one low-rank matrix."""
    return {projection: concatenated(parts) for projection, parts in gathered(deltas).items()}


def gathered(parts: Iterable[Mapping[Projection, Part]]) -> dict[Projection, list[Part]]:
    """projection → all that it has in these, in order."""
    found: dict[Projection, list[Part]] = {}
    for own in parts:
        for projection, part in own.items():
            found.setdefault(projection, []).append(part)
    return dict(sorted(found.items()))


def gate_of(word: str, applied: Applied) -> Gate | None:
    """The gate of deltas with that `Recipe.applied`; None is everywhere."""
    return None if applied == "everywhere" else Gate(word, onwards=applied == "onwards")


@contextmanager
def viewing(
    base: Base,
    everywhere: Mapping[Projection, Matrix],
    gated: Sequence[Exhibit] = (),
    strengths: Mapping[str, float] | None = None,
) -> Iterator[None]:
    """Attach a museum to the base for the duration of the block.

    everywhere: `Museum.compact()`. gated: the exhibits that act at their words only. Each is scaled by its own strength
    times that of its word in `strengths` (default 1).
    """
    with ExitStack() as views:
        views.enter_context(attached(base, everywhere))
        for exhibit in gated:
            views.enter_context(attached(base, exhibit.scaled(strengths), exhibit.gate))
        yield


def parse_strengths(entries: Sequence[str]) -> dict[str, float]:
    """User input like "<my-cat>" or "<my-cat>:0.8" → word → strength. Raises MuseumError for an invalid entry."""
    strengths = {}
    for entry in entries:
        word, _, strength = entry.partition(":")
        try:
            number = float(strength) if strength else 1.0
        except ValueError:
            number = math.nan
        if not abs(number) <= STRENGTH_LIMIT:
            raise MuseumError(
                f"'{entry}' is not valid: write <my-cat> or <my-cat>:0.8, with a strength from -{STRENGTH_LIMIT} to "
                f"{STRENGTH_LIMIT}."
            )
        strengths[normal(word.strip())] = number
    return strengths
