"""`show`: what is in a museum file, for people or for programs."""

import argparse
import json
from pathlib import Path

from ..measure import overlap_matrix, size
from ..storage import load_museum
from .progress import Say


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "show",
        help="what is in a museum",
        description="List the exhibits of a museum: how they were learned, how large their deltas are, and how much "
        "they overlap (0: no weight was moved by both; 1: the same weights, equally).",
    )
    parser.add_argument("museum", type=Path, help="museum file")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    museum = load_museum(arguments.museum)
    overlap = overlap_matrix(museum).tolist() if museum.exhibits else []
    exhibits = [
        {
            "word": exhibit.word,
            "kind": exhibit.kind,
            "prompt": exhibit.prompt,
            "rank": exhibit.rank,
            "strength": exhibit.strength,
            "norm": size(exhibit),
            "recipe": exhibit.recipe.to_json(),
            "facts": dict(exhibit.facts),
        }
        for exhibit in museum.exhibits
    ]
    base = {"architecture": museum.base.architecture, "digest": museum.base.digest}
    if arguments.json:
        say(json.dumps({"base": base, "exhibits": exhibits, "overlap": overlap}, indent=2, ensure_ascii=False))
        return
    say(f"{arguments.museum}: {len(exhibits)} exhibits over {museum.base}\n")
    for place, (exhibit, learned) in enumerate(zip(exhibits, museum.exhibits, strict=True)):
        recipe = learned.recipe
        say(f"{place + 1:3}. {exhibit['word']}  ({exhibit['kind']}, “{exhibit['prompt']}”)")
        shown = "" if learned.strength == 1 else f"; shown at strength {learned.strength:g}"
        say(f"     {recipe.method}, rank {exhibit['rank']}, {recipe.steps} steps; norm {exhibit['norm']:.3g}{shown}")
        facts = ", ".join(f"{name} {value}" for name, value in learned.facts.items())
        say(f"     {facts}" if facts else "     no facts were kept")
    if len(exhibits) > 1:
        say("\noverlap (0: apart, 1: the same weights)")
        for exhibit, row in zip(exhibits, overlap, strict=True):
            say(f"  {exhibit['word']:24}" + " ".join(f"{value:5.2f}" for value in row))
