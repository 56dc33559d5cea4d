"""Does a learned delta depend on its word, or act on any word in the same position?

    python -m benchmarks.style_words

Learns one built-in style or character at a time with `context-preservation`, styles with their word after the content
("a cat in <neon> style") and before it ("in <neon> style a cat"), and measures how far the delta moves keys and values
of held-out prompts, as a share of their own size:

    E‖Δ s‖² / E‖W s‖², mean over all projections and places        s: text states

for its own word, for a random word in its place, and for prompts without any such word. If the second is as large as
the first, the next style has to undo the first one at the text states that both use.
Writes `benchmarks/results/style_words.json`.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from clora_core.bench.measuring import machine
from clora_core.commands.progress import watched_bar
from clora_core.learning.learn import learn
from clora_core.learning.start import start_vectors
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import mean_square
from clora_core.model.text_states import second_moment, text_states
from clora_core.museum.museum import Exhibit, Museum
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import PICTURES, VECTORS, starter_recipe
from clora_core.starter.exam import Wording, concept_of, plain_requests, styled_prompt

RESULT = Path(__file__).parent / "results/style_words.json"
CASES: tuple[tuple[str, Wording], ...] = (
    ("mosaic", "usual"),
    ("mosaic", "first"),
    ("sketch", "usual"),
    ("sketch", "first"),
    ("ada", "usual"),
    ("bo", "usual"),
)
PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (0)")
    parser.add_argument("--steps", type=int, default=600, help="updates (600)")
    arguments = parser.parse_args()
    base = open_base("starter")
    rows = []
    for subject, wording in CASES:
        runs = [shares(base, subject, wording, seed, arguments.steps) for seed in arguments.seeds]
        means = {who: statistics.fmean(run[who] for run in runs) for who in runs[0]}
        rows.append({"subject": subject, "wording": wording, "runs": runs, "means": means})
        print(f"{subject:8} {wording:6}" + "".join(f"   {who} {share:.4f}" for who, share in means.items()))
    report = {"machine": machine(base.device), **vars(arguments), "prompts": PROMPTS, "shares": rows}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def shares(base: Base, subject: str, wording: Wording, seed: int, steps: int) -> dict[str, float]:
    """Kind of prompts → the share of their keys and values that the learned delta moves."""
    concept = concept_of(subject, PICTURES, seed=seed, vectors=VECTORS, wording=wording)
    with watched_bar(f"learning {concept.word}", steps) as report:
        recipe = starter_recipe("context-preservation", seed=seed, steps=steps)
        empty = Museum(base.fingerprint)
        museum = empty.with_exhibits(*learn(base, empty, [concept], recipe, report=report))
    (exhibit,) = museum.exhibits
    contents = [prompt for prompt, _ in plain_requests(PROMPTS, seed=1)]
    own = (
        [styled_prompt(exhibit.prompt, content) for content in contents]
        if concept.kind == "style"
        else [exhibit.prompt]
    )
    stranger = start_vectors(base, replace(concept, token_seed=seed + 1000))
    return {
        "its own word": share(base, exhibit, own, [exhibit.token]),
        "a random word in its place": share(base, exhibit, own, [ConceptToken(exhibit.word, stranger)]),
        "no such word": share(base, exhibit, contents, []),
    }


@torch.no_grad()
def share(base: Base, exhibit: Exhibit, prompts: Sequence[str], tokens: Sequence[ConceptToken]) -> float:
    states, _ = text_states(base, prompts, tokens)
    moment = second_moment([(1.0, states)])
    return statistics.fmean(
        float(mean_square(delta, moment) / base.slots[place].module(states[None])[0].square().sum(1).mean())
        for place, delta in exhibit.deltas.items()
    )


if __name__ == "__main__":
    main()
