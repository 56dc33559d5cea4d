"""How much does a delta change prompts with its own word, with other words of its museum, and without any?

    python -m benchmarks.reach --museums out/demo/museum.safetensors ...   museums of the demo, of any recipe

Prints, for every exhibit that acts everywhere, the share of keys and values that its delta moves, as `style_words`
defines it, for its own prompt, for every other exhibit's, and for everyday prompts. At 1, the change is as large as
the keys and values themselves.
Writes `benchmarks/results/reach.json`.
"""

import argparse
import json
from pathlib import Path

from clora_core.bench.measuring import machine
from clora_core.museum.file import load_museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter.exam import plain_requests

from .style_words import PROMPTS, share

RESULT = Path(__file__).parent / "results/reach.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--museums", type=Path, nargs="+", required=True, help="files over the starter model")
    arguments = parser.parse_args()
    base = open_base("starter")
    everyday = [prompt for prompt, _ in plain_requests(PROMPTS, seed=1)]
    rows = []
    for museum in map(load_museum, arguments.museums):
        for exhibit in museum.exhibits:
            if exhibit.recipe.applied != "everywhere":
                continue
            words = {other.word: share(base, exhibit, [other.prompt], [other.token]) for other in museum.exhibits}
            row = {"recipe": exhibit.recipe.method, "delta of": exhibit.word, "moves": words}
            rows.append(row | {"everyday prompts": share(base, exhibit, everyday, [])})
            moves = "  ".join(f"{word} {moved:.3f}" for word, moved in words.items())
            print(f"{exhibit.recipe.method:14}{exhibit.word:8}{moves}  everyday {rows[-1]['everyday prompts']:.4f}")
    report = {"machine": machine(base.device), "prompts": PROMPTS, "shares": rows}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
