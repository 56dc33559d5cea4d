"""The header of a museum file: everything except the tensors, to JSON and back.

Creating a Header checks it, so every Header is valid, whether it comes from a museum or from an untrusted file.
"""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from ...errors import MuseumError
from ...method.recipe import Recipe
from ...model.base import Fingerprint
from ...model.concept import TEMPLATES, Kind, check_word
from ...model.families import family_named
from ...model.families.family import Family
from ...model.families.unet import UNet, layers_per_block
from ...model.projections import Projection, Role
from ...pictures import THUMBNAIL_LIMIT_BYTES, check_thumbnail
from ...texts import normal
from ..museum import Exhibit, Museum
from .json_values import array, fields, integer, json_text, json_value, mapping, number, text

Stored = Literal["float32", "float16", "bfloat16"]

EXHIBITS_LIMIT = 4096
PROJECTIONS_LIMIT = 1024
THUMBNAIL_LIMIT = 4 * THUMBNAIL_LIMIT_BYTES // 3  # characters of base64

# The names of recipe choices in files of earlier versions.
OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    "applied": {"at its word": "word", "from its word on": "onwards"},
    "over": {"the museum": "museum", "the base": "base", "the last delta": "shared"},
}

EXHIBIT_FIELDS = "word kind prompt recipe facts rank layers words encoders thumbnail strength".split()


@dataclass(frozen=True)
class ExhibitHeader:
    """An exhibit without its tensors. Its word and prompt are in `texts.normal` form.

    spelled: the word as the file spells it, also in the names of the exhibit's tensors; "" if that is the word itself.
    ranks: projection → the rank of its delta. layers, words: the first two sizes of the word's vectors.
    """

    word: str
    kind: Kind
    prompt: str
    recipe: Recipe
    facts: Mapping[str, object]
    ranks: Mapping[Projection, int]
    layers: int
    words: int
    thumbnail: bytes
    strength: float = 1.0
    spelled: str = ""

    def __post_init__(self) -> None:
        word = normal(self.word)
        if word != self.word:
            object.__setattr__(self, "spelled", self.spelled or self.word)
        object.__setattr__(self, "word", word)
        object.__setattr__(self, "prompt", normal(self.prompt))

    @property
    def name(self) -> str:
        """What the exhibit's tensors are named after."""
        return self.spelled or self.word

    @property
    def rank(self) -> int:
        """The highest rank of its deltas; 0 for a word without deltas."""
        return max(self.ranks.values(), default=0)

    @property
    def everywhere(self) -> bool:
        """Whether its deltas act everywhere and are part of the sum, not at its word only."""
        return self.recipe.applied == "everywhere"

    @property
    def ordinary(self) -> bool:
        """Whether other programs can show it."""
        return self.everywhere and self.layers == 1


@dataclass(frozen=True)
class Header:
    """A museum without its tensors. dtype: of the tensors in the file; in memory they are float32.

    layers_per_block: of the UNet, which the tensors' names depend on; 2 in files that do not give it.
    """

    base: Fingerprint
    dtype: Stored
    projections: tuple[Projection, ...]
    exhibits: tuple[ExhibitHeader, ...]
    layers_per_block: int = 2

    def __post_init__(self) -> None:
        family = self.family
        if self.layers_per_block not in (1, 2):
            raise MuseumError(f"The UNet has {self.layers_per_block} layers per block; it must be 1 or 2.")
        if self.dtype not in get_args(Stored):
            raise MuseumError(f"The dtype is '{self.dtype}'; it must be one of {', '.join(get_args(Stored))}.")
        if len(self.projections) > PROJECTIONS_LIMIT:
            raise MuseumError(f"A museum has at most {PROJECTIONS_LIMIT} projections, not {len(self.projections)}.")
        for projection in self.projections:
            _check_projection(projection, family)
        _check_unique([family.lora_key(projection) for projection in self.projections], "projection")
        if len(self.exhibits) > EXHIBITS_LIMIT:
            raise MuseumError(f"A museum holds at most {EXHIBITS_LIMIT} exhibits, not {len(self.exhibits)}.")
        _check_unique(self.words, "word")
        for exhibit in self.exhibits:
            _check_exhibit(exhibit)
        moved = set().union(*(exhibit.ranks for exhibit in self.exhibits))
        if idle := [projection.path for projection in self.projections if projection not in moved]:
            raise MuseumError(f"No exhibit has a delta on the projection '{idle[0]}'.")

    @property
    def family(self) -> Family:
        family = family_named(self.base.family)
        if self.layers_per_block == 2 or not isinstance(family.structure, UNet):
            return family
        return replace(family, structure=replace(family.structure, layers_per_block=self.layers_per_block))

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(exhibit.word for exhibit in self.exhibits)

    def total_ranks(self) -> Iterator[tuple[Projection, int]]:
        """Each projection and R, the sum of the ranks of all exhibits that act everywhere, where it is not 0.

        One after another: a forged header may list millions of ranks.
        """
        summed = [exhibit.ranks for exhibit in self.exhibits if exhibit.everywhere]
        for projection in self.projections:
            if total := sum(ranks.get(projection, 0) for ranks in summed):
                yield projection, total

    def followed_by(self, other: "Header") -> "Header":
        """This header with the other's exhibits appended."""
        projections = sorted({*self.projections, *other.projections})
        layers = (self if self.projections else other).layers_per_block
        exhibits = (*self.exhibits, *other.exhibits)
        return replace(self, projections=tuple(projections), exhibits=exhibits, layers_per_block=layers)


def header_of(museum: Museum, dtype: Stored = "float32") -> Header:
    """The header of this museum. Raises MuseumError for anything that the format cannot hold."""
    projections = sorted({projection for exhibit in museum.exhibits for projection in exhibit.deltas})
    layers = layers_per_block(projection.path for projection in projections)
    entries = tuple(_entry(exhibit) for exhibit in museum.exhibits)
    header = Header(museum.base, dtype, tuple(projections), entries, layers)
    for exhibit in museum.exhibits:
        _check_tensors(exhibit, header.family)
    return header


def header_to_json(header: Header) -> str:
    """The header as JSON. The same header always gives the same text."""
    return json_text(
        {
            "base": {"architecture": header.base.family, "digest": header.base.digest},
            "dtype": header.dtype,
            **({} if header.layers_per_block == 2 else {"layers per block": header.layers_per_block}),
            "projections": [[p.path, p.role, *p.shape] for p in header.projections],
            "exhibits": [_exhibit_to_json(exhibit, header) for exhibit in header.exhibits],
        },
        "The museum's header",
    )


def header_from_json(source: str) -> Header:
    """The header from JSON. Raises MuseumError for an invalid one."""
    names = ("base", "dtype", "projections", "exhibits", "layers per block")
    given = mapping(json_value(source, "The header"), "The header")
    values = fields({"layers per block": 2, **given}, names, "The header")
    base = fields(values["base"], ("architecture", "digest"), "The base")
    name, digest = text(base["architecture"], "The base's architecture"), text(base["digest"], "The base's digest")
    projections = tuple(map(projection_from_json, array(values["projections"], "The list of projections")))
    exhibits = array(values["exhibits"], "The list of exhibits")
    reader = _ExhibitReader(projections, sorted(family_named(name).encoders))
    return Header(
        Fingerprint(name, digest),
        cast(Stored, text(values["dtype"], "The dtype")),
        projections,
        tuple(reader.exhibit(entry, f"Exhibit {number}") for number, entry in enumerate(exhibits, 1)),
        integer(values["layers per block"], "The number of layers per block", least=1),
    )


def _entry(exhibit: Exhibit) -> ExhibitHeader:
    return ExhibitHeader(
        exhibit.word,
        exhibit.kind,
        exhibit.prompt,
        exhibit.recipe,
        exhibit.facts,
        {projection: delta.rank for projection, delta in exhibit.deltas.items()},
        exhibit.token.layers,
        exhibit.token.words,
        exhibit.thumbnail,
        exhibit.strength,
    )


def _exhibit_to_json(exhibit: ExhibitHeader, header: Header) -> dict[str, object]:
    """rank: one number if it is the same on every projection of the file, else path → rank. Strength 1 is left out."""
    ranks = {p.path: exhibit.ranks[p] for p in header.projections if p in exhibit.ranks}
    everywhere = len(ranks) == len(header.projections) and len(set(ranks.values())) == 1
    return {
        "word": exhibit.name,
        "kind": exhibit.kind,
        "prompt": exhibit.prompt,
        "recipe": exhibit.recipe.to_json(),
        "facts": dict(exhibit.facts),
        "rank": next(iter(ranks.values())) if everywhere else ranks,
        "layers": exhibit.layers,
        "words": exhibit.words,
        "encoders": sorted(header.family.encoders),
        "thumbnail": base64.b64encode(exhibit.thumbnail).decode(),
        **({} if exhibit.strength == 1 else {"strength": exhibit.strength}),
    }


class _ExhibitReader:
    """Reads exhibits, and caches recipes and ranks that many have in common: a thousand are read in milliseconds."""

    def __init__(self, projections: tuple[Projection, ...], encoders: list[str]) -> None:
        self.projections = projections
        self.encoders = encoders
        self.recipes: dict[str, Recipe] = {}
        self.everywhere: dict[int, Mapping[Projection, int]] = {}

    def exhibit(self, entry: object, what: str) -> ExhibitHeader:
        values = fields({"strength": 1, **mapping(entry, what)}, EXHIBIT_FIELDS, what)
        if (encoders := values["encoders"]) != self.encoders:
            raise MuseumError(f"{what}: its vectors are for {encoders!r:.60}; this family has {self.encoders}.")
        facts = mapping(values["facts"], f"{what}: facts")
        json_text(facts, f"{what}: facts")
        return ExhibitHeader(
            text(values["word"], f"{what}: word"),
            cast(Kind, text(values["kind"], f"{what}: kind")),
            text(values["prompt"], f"{what}: prompt"),
            self.recipe(values["recipe"], f"{what}: recipe"),
            facts,
            self.ranks(values["rank"], f"{what}: rank"),
            integer(values["layers"], f"{what}: layers", least=1),
            integer(values["words"], f"{what}: words", least=1),
            _thumbnail(text(values["thumbnail"], f"{what}: thumbnail"), what),
            number(values["strength"], f"{what}: strength"),
        )

    def recipe(self, value: object, what: str) -> Recipe:
        source = repr(value)  # distinguishes 1, 1.0 and true
        if source not in self.recipes:
            self.recipes[source] = recipe_from_json(value, what)
        return self.recipes[source]

    def ranks(self, value: object, what: str) -> Mapping[Projection, int]:
        if isinstance(value, dict):
            paths = {projection.path: projection for projection in self.projections}
            if unknown := [path for path in value if path not in paths]:
                raise MuseumError(f"{what} has an unknown projection, '{unknown[0]:.100}'.")
            own = [projection for path, projection in paths.items() if path in value]
            return {p: integer(value[p.path], f"{what} of '{p.path}'", least=1) for p in own}
        rank = integer(value, what, least=1)
        if rank not in self.everywhere:
            self.everywhere[rank] = dict.fromkeys(self.projections, rank)
        return self.everywhere[rank]


def projection_from_json(entry: object) -> Projection:
    """[path, role, out, in]; its role may be any string."""
    match array(entry, "A projection"):
        case [path, role, rows, columns]:
            shape = integer(rows, "A projection's height", least=1), integer(columns, "A projection's width", least=1)
            return Projection(text(path, "A projection's path"), cast(Role, text(role, "A projection's role")), shape)
    raise MuseumError(f"A projection is [path, role, out, in], not {entry!r:.60}.")


def recipe_from_json(value: object, what: str) -> Recipe:
    """A recipe from an untrusted source. Raises MuseumError or RecipeError for anything else."""
    values = dict(mapping(value, what))
    array(values.get("regularizers"), f"{what}: regularizers")
    for name, names in OLD_NAMES.items():
        if isinstance(old := values.get(name), str):
            values[name] = names.get(old, old)
    return Recipe.from_json(values)


def _thumbnail(encoded: str, what: str) -> bytes:
    if len(encoded) > THUMBNAIL_LIMIT:
        raise MuseumError(f"{what}: its thumbnail has {len(encoded)} characters; the limit is {THUMBNAIL_LIMIT}.")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise MuseumError(f"{what}: its thumbnail is not base64 ({error}).") from error


def _check_projection(projection: Projection, family: Family) -> None:
    if projection.role != family.structure.role(projection.path):
        raise MuseumError(
            f"'{projection.path:.100}' ({projection.role:.20}) is not the path of a key or value projection in a "
            f"{family.title} model."
        )
    if not family.has([projection]):
        raise MuseumError(
            f"'{projection.path}' has an input width of {projection.shape[1]}; {family.name} has {family.text_width}."
        )


def _check_exhibit(exhibit: ExhibitHeader) -> None:
    check_word(exhibit.word)
    if exhibit.kind not in TEMPLATES:
        kinds = ", ".join(TEMPLATES)
        raise MuseumError(f"The kind of '{exhibit.word}' is '{exhibit.kind:.60}'; it must be one of {kinds}.")
    if min(exhibit.ranks.values(), default=1) < 1:
        raise MuseumError(f"'{exhibit.word}' has a delta of rank 0. Leave that projection out.")
    if exhibit.thumbnail:
        try:
            check_thumbnail(exhibit.thumbnail)
        except MuseumError as error:
            raise MuseumError(f"'{exhibit.word}': {error}") from error


def _check_tensors(exhibit: Exhibit, family: Family) -> None:
    for projection, delta in exhibit.deltas.items():
        if delta.shape != projection.shape:
            raise MuseumError(
                f"The delta of '{exhibit.word}' on '{projection.path}' has shape {delta.shape}; the projection has "
                f"{projection.shape}."
            )
    widths = {encoder: vectors.shape[-1] for encoder, vectors in exhibit.token.vectors.items()}
    if widths != (expected := dict(family.encoders)):
        raise MuseumError(f"The vectors of '{exhibit.word}' have widths {widths}; {family.name} needs {expected}.")
    if min(next(iter(exhibit.token.vectors.values())).shape) < 1:
        raise MuseumError(f"'{exhibit.word}' has no vectors.")


def _check_unique(names: list[str] | tuple[str, ...], what: str) -> None:
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise MuseumError(f"The {what} '{name}' occurs {count} times. Every {what} must be unique.")
