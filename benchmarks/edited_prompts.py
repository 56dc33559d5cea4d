"""Why do edited prompts lose a concept, and where in the prompt is it?

    python -m benchmarks.edited_prompts

Three random characters that share traits, none of them a built-in one, are learned on the starter model: each alone
with `preservation`, to see which rows of a prompt its delta moves; and all in a row with every variant, to see how
often edited prompts keep them, for eight kinds of edits. The numbers of `preservation-at-word` were chosen on these
three. Writes `benchmarks/results/edited_prompts.json`.
"""

import dataclasses
import json
import random
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import torch

from clora_core.bench.measuring import machine
from clora_core.commands.progress import watched_bar
from clora_core.method.recipe import Recipe
from clora_core.model.base import Base
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Exhibit, Museum, viewing
from clora_core.over_diffusers.base import open_base
from clora_core.starter import exam, subjects
from clora_core.starter.course import starter_recipe, take_course
from clora_core.starter.judge import load_judge, read, recognised
from clora_core.starter.world import IDENTITY, SAYABLE, place_phrase

RESULT = Path(__file__).parent / "results/edited_prompts.json"
SHARED, GROUP, SAMPLES, EACH = 4, 3, 16, 6
USUAL, AT_WORD = starter_recipe("preservation"), starter_recipe("preservation-at-word")
VARIANTS: Mapping[str, Recipe] = {
    "preservation": USUAL,
    "word focus alone": dataclasses.replace(AT_WORD, token_learning_rate=USUAL.token_learning_rate),
    "slow word alone": dataclasses.replace(USUAL, token_learning_rate=AT_WORD.token_learning_rate),
    "preservation-at-word": AT_WORD,
    "word-gated-onwards": starter_recipe("word-gated-onwards"),
}


def characters() -> dict[str, dict[str, str]]:
    """Ten in groups of three, which share four or more of nine traits."""
    values = {name: sorted({traits[name] for traits in subjects.ALL_IDENTITIES.values()}) for name in IDENTITY}
    rng = random.Random("dev identities 1")
    found: list[dict[str, str]] = []
    while len(found) < 10:
        group = [{name: rng.choice(options) for name, options in values.items()}]
        while len(group) < GROUP:
            other = dict(group[0])
            for name in rng.sample(list(IDENTITY), len(IDENTITY) - SHARED):
                other[name] = rng.choice(values[name])
            if other not in group:
                group.append(other)
        found += group
    return {f"d{number}": traits for number, traits in enumerate(found[:10])}


def edits(word: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """One prompt for each kind of edit."""
    hat, place, shirt, mood = (
        rng.choice([value for value in SAYABLE[name] if value != "none"])
        for name in ("hat", "background", "shirt", "mood")
    )
    where = place_phrase(place)
    yield "hat and place", f"a photo of {word} wearing a {hat}{where}"
    yield "place", f"a photo of {word}{where}"
    yield "glasses", f"a photo of {word} wearing glasses"
    yield "shirt", f"a photo of {word} wearing a {shirt} shirt"
    yield "mood", f"a photo of a {mood} {word}"
    yield "word first", f"{word}{where}"
    yield "another template", f"a picture of {word} wearing a {hat}"
    yield "all", f"a photo of a {mood} {word} wearing a {hat} and a {shirt} shirt{where}"


def moved(base: Base, exhibit: Exhibit) -> list[float]:
    """How far the delta moves the keys and values of each row of the exhibit's prompt, over their size."""
    (states,) = base.encode_prompts([exhibit.prompt], [exhibit.token]).states
    shares = [
        (states @ delta.dense().T).norm(dim=1) / (states @ base.slots[projection].weight.T).norm(dim=1)
        for projection, delta in exhibit.deltas.items()
    ]
    return [round(share, 3) for share in torch.stack(shares).mean(0).tolist()]


def kept(
    examiner: exam.Examiner, museum: Museum, name: str, among: Mapping[str, Mapping[str, str]]
) -> dict[str, float]:
    """The share of pictures of each kind of edit in which the character is recognised."""
    rng = random.Random(f"edits {name}")
    asked = [edit for _ in range(EACH) for edit in edits(f"<{name}>", rng)]
    base = examiner.base
    with viewing(base, museum.compact(), museum.gated):
        pictures = sample(
            base,
            [prompt for _, prompt in asked],
            museum.tokens,
            Sampling(guidance=base.family.guidance),
            latent_shape=base.latent_shape(exam.SIDE_PX, exam.SIDE_PX),
        )
    found = recognised(read(examiner.judge, pictures), among)
    kinds = dict.fromkeys(kind for kind, _ in asked)
    return {
        kind: statistics.fmean(who == name for who, (other, _) in zip(found, asked, strict=True) if other == kind)
        for kind in kinds
    }


def main() -> None:
    among = characters()
    names = list(among)[:GROUP]
    examiner = exam.Examiner(open_base("starter"), load_judge())
    counts = {"samples": SAMPLES, "samples_between": 2, "plain": 48}
    report: dict[str, object] = {"machine": machine(examiner.base.device), "alone": [], "in a row": []}
    with mock.patch.dict(subjects.ALL_IDENTITIES, among), mock.patch.object(exam, "candidates", lambda name: among):
        for name in names:
            museum = take_course(examiner, [name], USUAL, watched=watched_bar, **counts).museum
            row = {"character": name, "moved": moved(examiner.base, museum.exhibits[0])}
            _add(report, "alone", row | {"edited": kept(examiner, museum, name, among)})
        for variant, recipe in VARIANTS.items():
            course = take_course(examiner, names, recipe, watched=watched_bar, **counts)
            last = course.evaluations[-1]
            row = {"variant": variant, "at the end": statistics.fmean(each.alignment for each in last)}
            edited = [kept(examiner, course.museum, name, among) for name in names]
            kinds = {kind: statistics.fmean(each[kind] for each in edited) for kind in edited[0]}
            row |= {"edited": statistics.fmean(kinds.values()), "kinds": kinds, "plain prompts": course.plain}
            _add(report, "in a row", row)


def _add(report: dict, part: str, row: dict) -> None:
    report[part].append(row)
    print(json.dumps(row), flush=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
