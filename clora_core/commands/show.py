"""`show`: list the content of a museum file, as text or JSON."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import CLoRAError
from ..museum.file import ExhibitHeader, Header, check_names, load_museum, read_header
from ..museum.museum import TOGETHER, Museum
from ..museum.overlap import overlap_matrix, size
from ..pictures import from_thumbnail
from ..sheets import thumbnail_sheet, write_picture
from ..texts import counted
from .progress import Say

ACTS = {"word": "acts at its word", "onwards": "acts from its word on"}
MEASURED = 32  # exhibits; more overlaps are only measured with --overlap, since every pair is compared


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "show",
        help="list the exhibits of a museum",
        description="List the exhibits of a museum: how they were learned, the norms of their deltas, and their "
        "overlaps (0: no weight is changed by both; 1: the same weights, equally).",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    parser.add_argument("--json", action="store_true", help="print JSON; docs/museum-file.md explains the keys")
    parser.add_argument("--overlap", action="store_true", help=f"measure even more than {MEASURED} exhibits")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write all thumbnails as one picture")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    if arguments.sheet:
        check_names(arguments.sheet)
    header = read_header(arguments.museum)
    measured = arguments.overlap or len(header.exhibits) <= MEASURED
    museum = load_museum(arguments.museum) if measured else None
    if arguments.json:
        say(json.dumps(_as_json(arguments.museum, header, museum), indent=2, ensure_ascii=False))
    else:
        for line in _as_lines(arguments.museum, header, museum):
            say(line)
    if arguments.sheet:
        _write_sheet(header, arguments.sheet)


def _as_json(path: Path, header: Header, museum: Museum | None) -> dict[str, object]:
    """Everything except the tensors, with norms and overlaps if the museum is given."""
    norms = [size(exhibit) for exhibit in museum.exhibits] if museum else [None] * len(header.exhibits)
    exhibits = [
        {
            "word": entry.word,
            "kind": entry.kind,
            "prompt": entry.prompt,
            "rank": entry.rank,
            "projections": len(entry.ranks),
            "strength": entry.strength,
            "applied": entry.recipe.applied,
            "vectors": entry.words,
            "layers": entry.layers,
            "ordinary": entry.ordinary,
            "norm": norm,
            "recipe": entry.recipe.to_json(),
            "facts": dict(entry.facts),
        }
        for entry, norm in zip(header.exhibits, norms, strict=True)
    ]
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "base": {"architecture": header.base.family, "digest": header.base.digest},
        "dtype": header.dtype,
        "exhibits": exhibits,
        "overlap": _overlaps(museum) if museum else None,
    }


def _as_lines(path: Path, header: Header, museum: Museum | None) -> list[str]:
    """The same as text."""
    count = len(header.exhibits)
    size_mib = path.stat().st_size / 2**20
    lines = [f"{path}: {counted(count, 'exhibit')} for {header.base}, {size_mib:.1f} MiB, {header.dtype}"]
    for place, entry in enumerate(header.exhibits):
        prompt = f", “{entry.prompt}”" if entry.prompt else ""
        lines += ["", f"{place + 1:3}. {entry.word}  ({entry.kind}{prompt})"]
        lines += [f"     {line}" for line in _described(entry, size(museum.exhibits[place]) if museum else None)]
    if museum and count > 1:
        width = max(len(word) for word in header.words)
        lines += ["", "overlap (0: different weights, 1: the same weights) of the numbered exhibits"]
        lines += [" " * (width + 2) + " ".join(f"{place + 1:5}" for place in range(count))]
        lines += [
            f"  {word:{width}}" + " ".join(f"{value:5.2f}" for value in row)
            for word, row in zip(header.words, _overlaps(museum), strict=True)
        ]
    elif count > 1:
        lines += ["", f"There are more than {MEASURED} exhibits. To measure overlaps and norms, add --overlap."]
    return [line.replace("\n", "\\n") for line in lines]


def _write_sheet(header: Header, path: Path) -> None:
    """Write the thumbnails with their words as one picture."""
    tiles = [(entry.word, from_thumbnail(entry.thumbnail)) for entry in header.exhibits if entry.thumbnail]
    if not tiles:
        raise CLoRAError("There is no thumbnail in this museum. Add one with `edit --thumbnail`.")
    write_picture(thumbnail_sheet(tiles), path)


def _described(entry: ExhibitHeader, norm: float | None) -> list[str]:
    """Up to three lines: the recipe, special properties, and the facts."""
    recipe = entry.recipe
    learned = [recipe.method, f"rank {entry.rank}", counted(recipe.steps, "step")]
    learned += [f"norm {norm:.3g}"] if norm is not None else []
    special = [counted(entry.words, "vector")] if entry.words > 1 else []
    special += [] if entry.strength == 1 else [f"strength {entry.strength:g}"]
    special += [] if entry.everywhere else [ACTS[recipe.applied]]
    special += [] if entry.layers == 1 else [f"its word has {entry.layers} layers"]
    special += [] if entry.ordinary else ["other programs cannot show it"]
    shown = {name: value for name, value in entry.facts.items() if name != TOGETHER}
    facts = [f"{name} {value:{'.3g' if isinstance(value, float) else ''}}" for name, value in shown.items()]
    return [", ".join(part) for part in (learned, special, facts) if part]


def _overlaps(museum: Museum) -> Sequence[Sequence[float]]:
    return overlap_matrix(museum).tolist() if museum.exhibits else []
