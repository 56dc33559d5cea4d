"""Learning one after another in a world that others drew: emoji by eleven designers.

    pip install resvg-py
    python -m benchmarks.emoji_world --work DIR

Downloads and draws the pictures (`emoji_data.py`), trains a base of the starter's kind (`emoji_base.py`) and judges
(`emoji_judges.py`), and then learns ten things that the base has never seen, or the styles of five designers whom it
has never seen, with several recipes. All of them have the starter's numbers; nothing is tuned on this world. Takes some
hours on one CPU core. After a stop, the same command resumes, and finished runs are not repeated. Writes the runs to
`benchmarks/results/emoji/`, `base.json` and the table `emoji.md` too; contact sheets stay in the folder DIR.
"""

import argparse
import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.emoji_base import open_emoji_base
from benchmarks.emoji_data import (
    FAMILIAR,
    STYLES,
    TRAINED,
    World,
    content,
    in_style,
    open_world,
    slug,
    style_word,
    varied,
)
from benchmarks.emoji_judges import ASKED, EmojiJudge, fit_designer_judge, open_thing_judge, quality, share
from clora_core.bench.forgetting import in_order
from clora_core.bench.forgetting_table import table_of
from clora_core.bench.methods import method_recipe
from clora_core.bench.runs import Run, read_json, write_json
from clora_core.commands.progress import watched_bar
from clora_core.measure import final_alignment, forgetting, initial_alignment
from clora_core.model.concept import Concept
from clora_core.model.sampling import Sampling
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import DiffusersBase
from clora_core.pictures import in_memory
from clora_core.seeds import seeded
from clora_core.sheets import contact_sheet, grid
from clora_core.starter.course import PICTURES, VECTORS, take_course
from clora_core.starter.exam import STYLE_GUIDANCE, Evaluation, Wording, sampled_with
from clora_core.starter.style_judge import StyleJudge

RESULTS = Path(__file__).parent / "results/emoji"
CANDIDATES, ORDERS = 10, 2  # the learned things, which are told apart among each other
SAMPLES, SAMPLES_BETWEEN, PLAIN, EDITS, BASE_SAMPLES = 16, 1, 96, 6, 144
METHODS = {
    "things": ("preservation", "word-gated-onwards", "c-lora", "sequential", "separate", "museum-maker"),
    "styles": tuple(
        f"{name}{order}"
        for name in ("preservation", "word-gated-onwards", "c-lora", "sequential", "museum-maker")
        for order in ("", "+first")
    ),
}
TITLES = {
    "learned": "recognized when learned",
    "kept": "recognized at the end",
    "forgetting": "forgotten",
    "confusion": "confused with another",
    "shown": "",  # differs
    "edited": "recognized when edited",
    "followed": "style followed when edited",
    "plain": "plain prompts",
    "plain_lost": "plain prompts lost",
    "style_lost": "their styles lost",
    "late_norm": "‖Δ‖ last / first",
    "processor_seconds": "CPU s per concept",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, weights and contact sheets")
    parser.add_argument("--tracks", nargs="+", choices=METHODS, default=list(METHODS), help="what is learned (both)")
    parser.add_argument("--methods", nargs="+", help="recipes (those of METHODS)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    arguments = parser.parse_args()
    for folder in (RESULTS, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    world = open_world(arguments.work)
    base = open_emoji_base(world, arguments.work)
    designers = [fit_designer_judge(world, group) for group in (TRAINED, STYLES)]
    examiner = EmojiExaminer(base, world, open_thing_judge(world, arguments.work), *designers)
    if not (RESULTS / "base.json").exists():
        write_json(RESULTS / "base.json", base_quality(examiner, arguments.work))
    before = examiner.plain_prompts(Museum(base.fingerprint), count=PLAIN)
    for seed, track in itertools.product(arguments.seeds, arguments.tracks):
        for method in arguments.methods or METHODS[track]:
            path = RESULTS / f"{track}-{method}-seed{seed}.json"
            if not path.exists():
                write_json(path, course_of(examiner, track, method, seed, before, arguments.work / f"{path.stem}.png"))
            (RESULTS / "emoji.md").write_text(tables(), encoding="utf-8")
    print(tables())


@dataclass(frozen=True, eq=False)
class EmojiExaminer:
    """Samples things and styles with a museum, and lets the judges name what is shown: see `exam.Examiner`.

    A subject is a new thing's name with hyphens, or a designer.
    """

    base: DiffusersBase
    world: World
    things: EmojiJudge
    trained: StyleJudge
    styles: StyleJudge

    @property
    def candidates(self) -> Sequence[str]:
        """The new things that are learned, and told apart."""
        return self.world.new[:CANDIDATES]

    @property
    def asked(self) -> Sequence[str]:
        """The known things that prompts ask for."""
        return self.world.known[:ASKED]

    def concept(self, subject: str, *, seed: int, wording: Wording) -> Concept:
        """A thing by the designers that the base knows; or known things, which no prompt asks for, by a new one."""
        word, rng = f"<{subject}>", random.Random(f"emoji {subject} {seed}")
        if subject not in STYLES:
            pictures = self.real(subject, PICTURES, seed=seed)
            return Concept(word, in_memory(pictures), template="a picture of {word}", vectors=VECTORS, token_seed=seed)
        pairs = rng.sample(self.world.drawn(self.world.known[ASKED:FAMILIAR], [subject]), PICTURES)
        first = wording == "first"
        captions = tuple(in_style(content(name), "{word}", first=first) for name, _ in pairs)
        template = in_style("a picture", "{word}", first=first)
        pictures = in_memory(self.world.floats(pairs))
        return Concept(word, pictures, "style", template, captions, VECTORS, token_seed=seed)

    def real(self, subject: str, count: int, *, seed: int = 0) -> Tensor:
        """Real pictures of a subject. Of a thing: by each trained designer, then the same, smaller and shifted."""
        if subject in STYLES:
            return self.world.floats(self.world.drawn(self.asked, [subject])[:count])
        own = self.world.floats(self.world.drawn([self.name(subject)], TRAINED))
        times = -(-count // len(own))
        rng = seeded("emoji", subject, seed)
        return torch.cat([own, *(varied(own, rng) for _ in range(times - 1))])[:count]

    def name(self, subject: str) -> str:
        return next(name for name in self.world.new if slug(name) == subject)

    def evaluate(self, museum: Museum, subject: str, *, count: int) -> Evaluation:
        """A thing among the candidates; its `attributes`: among all new things. A style among the new ones;
        its `attributes`: how many pictures show the known thing that was asked for."""
        prompt = museum.exhibit(f"<{subject}>").prompt
        if subject in STYLES:
            names = [self.asked[number % ASKED] for number in range(count)]
            prompts = [prompt.replace("a picture", content(name), 1) for name in names]
            sampled = sampled_with(self.base, museum, prompts, Sampling(guidance=STYLE_GUIDANCE))
            taken_for = self.styles.styles_of(sampled)
            shown = share(self.things.named(sampled, self.asked), names)
            return Evaluation(taken_for.count(subject) / count, shown, taken_for, sampled)
        sampled = sampled_with(self.base, museum, [prompt] * count, self._sampling)
        taken_for = [slug(name) for name in self.things.named(sampled, self.candidates)]
        strictly = self.things.named(sampled, self.world.new).count(self.name(subject)) / count
        return Evaluation(taken_for.count(subject) / count, strictly, taken_for, sampled)

    def edits(self, museum: Museum, subject: str, *, count: int) -> tuple[float, float, Tensor]:
        """A new thing asked for in the styles of known designers: how often it is still recognized, how often the style
        is followed, and the pictures."""
        designers = [TRAINED[number % len(TRAINED)] for number in range(count)]
        prompts = [in_style(museum.exhibit(f"<{subject}>").prompt, style_word(designer)) for designer in designers]
        sampled = sampled_with(self.base, museum, prompts, self._sampling)
        found = self.things.named(sampled, self.candidates)
        return share(found, [self.name(subject)] * count), share(self.trained.styles_of(sampled), designers), sampled

    def plain_prompts(self, museum: Museum, *, count: int) -> tuple[float, Tensor]:
        """The share of `plain_requests` whose thing is recognized among the asked ones; and the pictures."""
        requests = plain_requests(self.asked, count)
        sampled = sampled_with(self.base, museum, [prompt for prompt, _, _ in requests], self._sampling)
        return share(self.things.named(sampled, self.asked), [name for _, name, _ in requests]), sampled

    def styles_followed(self, plain: Tensor) -> float:
        """The share of these pictures of `plain_requests` in the style of the designer who was asked for, if any."""
        styled = [(n, who) for n, (_, _, who) in enumerate(plain_requests(self.asked, len(plain))) if who]
        found = self.trained.styles_of(plain[[number for number, _ in styled]])
        return share(found, [designer for _, designer in styled])

    @property
    def _sampling(self) -> Sampling:
        return Sampling(guidance=self.base.family.guidance)


def plain_requests(names: Sequence[str], count: int) -> list[tuple[str, str, str]]:
    """Prompts of known things in turn, and the thing and the designer ("": none) that they ask for.

    A third has no style, a third names it last, and a third first.
    """
    requests = []
    for number in range(count):
        name, designer = names[number % len(names)], TRAINED[number // 3 % len(TRAINED)]
        if number % 3 == 0:
            requests.append((content(name), name, ""))
        else:
            requests.append((in_style(content(name), style_word(designer), first=number % 3 == 2), name, designer))
    return requests


def base_quality(examiner: EmojiExaminer, work: Path) -> dict[str, Any]:
    """How good the judges are on real pictures, and the base on plain prompts. Writes sheets of both."""
    world, base = examiner.world, examiner.base
    pairs = world.drawn(world.new, TRAINED)
    real = world.floats(pairs)
    decoded = base.decode_latents(base.encode_pictures(real))
    grid(torch.cat([real[:48], decoded[:48]]), columns=12).save(work / "decoded.png")
    names, designers = zip(*pairs, strict=True)
    museum = Museum(base.fingerprint)
    recognized, pictures = examiner.plain_prompts(museum, count=BASE_SAMPLES)
    grid(pictures[:120], columns=15).save(work / "plain.png")
    expected = [name for _, name, _ in plain_requests(examiner.asked, BASE_SAMPLES)]
    return {
        "judges": quality(world, examiner.things, (examiner.trained, examiner.styles), CANDIDATES),
        "decoded": {
            "squared error": (decoded - real).square().mean().item(),
            "new things": share(examiner.things.named(decoded, world.new), names),
            "designers": share(examiner.trained.styles_of(decoded), designers),
        },
        "plain prompts": {
            "samples": BASE_SAMPLES,
            "asked things": recognized,
            "among all things": share(examiner.things.named(pictures, examiner.things.names), expected),
            "styles followed": examiner.styles_followed(pictures),
            "named as": dict(zip(expected, examiner.things.named(pictures, examiner.asked), strict=False)),
        },
    }


def course_of(
    examiner: EmojiExaminer, track: str, method: str, seed: int, before: tuple[float, Tensor], sheet: Path
) -> dict[str, Any]:
    """Take one course, draw its contact sheet, and return what was measured. before: the base's plain prompts."""
    names = [*map(slug, examiner.candidates)] if track == "things" else STYLES
    subjects = in_order(names, seed % ORDERS)
    recipe, wording = method_recipe(method, seed=seed)
    course = take_course(
        examiner,
        subjects,
        recipe,
        watched=watched_bar,
        samples=SAMPLES,
        samples_between=SAMPLES_BETWEEN,
        plain=PLAIN,
        concept=lambda subject: examiner.concept(subject, seed=seed, wording=wording),
    )
    last = course.evaluations[-1]
    taken = [name for own, subject in zip(last, subjects, strict=True) for name in own.taken_for if name != subject]
    after = examiner.styles_followed(course.plain_pictures)
    result: dict[str, Any] = {
        **{"track": track, "method": method, "seed": seed, "order": seed % ORDERS, "subjects": subjects},
        "learned_each": [row[place].alignment for place, row in enumerate(course.evaluations)],
        "kept_each": [evaluation.alignment for evaluation in last],
        "learned": initial_alignment(course.alignment),
        "kept": final_alignment(course.alignment),
        "forgetting": forgetting(course.alignment),
        "confusion": sum(name in subjects for name in taken) / (SAMPLES * len(subjects)),
        "shown": statistics.fmean(evaluation.attributes for evaluation in last),
        "plain": course.plain,
        "plain_lost": before[0] - course.plain,
        "style_lost": examiner.styles_followed(before[1]) - after,
        "late_norm": course.norms[-1] / course.norms[0] if course.norms[0] else 0.0,
        "processor_seconds": course.processor_seconds / len(subjects),
        "recipe": recipe.to_json(),
    }
    edited = []
    if track == "things":
        edits = [examiner.edits(course.museum, subject, count=EDITS) for subject in subjects]
        result["edited"], result["followed"] = (statistics.fmean(edit[place] for edit in edits) for place in (0, 1))
        edited = [[pictures] for _, _, pictures in edits]
    rows = course.rows(4, shown=examiner.real)
    rows = [
        (name, [blocks[0], blocks[1 + place], blocks[-1], *(edited[place] if edited else [])])
        for place, (name, blocks) in enumerate(rows)
    ]
    titles = ["real", "learned", "at the end", *(["edited"] if edited else [])]
    contact_sheet([*rows, ("plain", [None, before[1], course.plain_pictures])], titles, columns=4).save(sheet)
    return result


def tables() -> str:
    """Markdown: a table for each track, of the runs that are finished."""
    runs: dict[str, list[Run]] = {}
    for path in sorted(RESULTS.glob("*-seed*.json")):
        run = read_json(path)
        runs.setdefault(run["track"], []).append(run)
    shown = {"things": "recognized at the end among all 60", "styles": "things shown"}
    parts = [
        f"## {track.capitalize()}\n\n{table_of(own, TITLES | {'shown': shown[track]})}\n" for track, own in runs.items()
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
