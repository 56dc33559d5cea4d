"""Many concepts in a row: are the first ones still there, and what does each one more cost?

    python -m benchmarks.long_sequence

Learns random characters of the built-in world, none of them a built-in one, with the default recipe in a third of its
steps. At some lengths of the sequence, every word so far is sampled and looked for among all characters. Also measured:
plain prompts, how far the newest delta moves the keys and values of everyday and of earlier prompts (`style_words`
defines these shares), and the time of a step. Writes `benchmarks/results/long_sequence.json`; with `--museum FILE`,
the museum after every character too, from which the same command goes on after a stop.
"""

import argparse
import statistics
import time
from pathlib import Path
from unittest import mock

from clora_core.bench.measuring import machine
from clora_core.bench.runs import read_json, write_json
from clora_core.commands.progress import watched_bar
from clora_core.learning.learn import learn
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum
from clora_core.museum.overlap import size
from clora_core.over_diffusers.base import open_base
from clora_core.starter import exam, subjects
from clora_core.starter.course import PICTURES, PLAIN, VECTORS, starter_recipe
from clora_core.starter.judge import identified, load_judge, read

from .edited_prompts import characters
from .style_words import PROMPTS, share

RESULT = Path(__file__).parent / "results/long_sequence.json"
LENGTHS, SAMPLES, MOVED = (1, 2, 5, 10, 20, 35, 50, 75, 100), 8, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="number of characters (50)")
    parser.add_argument("--method", default="preservation", help="recipe (preservation)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each character (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed (0)")
    parser.add_argument("--museum", type=Path, help="keep the museum in this file, and go on from it")
    arguments = parser.parse_args()
    recipe = starter_recipe(arguments.method, seed=arguments.seed, steps=arguments.steps)
    examiner = exam.Examiner(open_base("starter"), load_judge())
    base, among = examiner.base, characters(arguments.count, "long sequence")
    everyday = [prompt for prompt, _ in exam.plain_requests(PROMPTS, seed=1)]
    museum = Museum(base.fingerprint)
    settings = {name: value for name, value in vars(arguments).items() if name != "museum"}
    report = {"machine": machine(base.device), **settings, "samples": SAMPLES, "learned": [], "lengths": []}
    if arguments.museum and arguments.museum.exists():
        museum, report = load_museum(arguments.museum), dict(read_json(RESULT))
    with mock.patch.dict(subjects.ALL_IDENTITIES, among), mock.patch.object(exam, "candidates", lambda name: among):
        real = {name: read(examiner.judge, exam.drawn(name, SAMPLES, seed=1)) for name in among}
        found = sum(identified(verdict, among).count(name) for name, verdict in real.items())
        report["real pictures recognized"] = found / SAMPLES / len(among)
        report["plain prompts before"], _ = examiner.plain_prompts(Museum(base.fingerprint), count=PLAIN)
        learned = report["learned"]  # of each
        for name in list(among)[len(museum.exhibits) :]:
            concept = exam.concept_of(name, PICTURES, seed=arguments.seed, vectors=VECTORS)
            began = time.process_time()
            with watched_bar(f"<{name}>", recipe.steps) as shown:
                museum = museum.with_exhibits(*learn(base, museum, [concept], recipe, report=shown))
            seconds = time.process_time() - began
            learned.append(examiner.evaluate(museum, name, count=SAMPLES).alignment)
            if arguments.museum:
                save_museum(museum, arguments.museum, overwrite=True)
                write_json(RESULT, report)
            if (length := len(learned)) not in LENGTHS:
                continue
            kept = [examiner.evaluate(museum, other, count=SAMPLES).alignment for other in list(among)[:length]]
            newest, earlier = museum.exhibits[-1], museum.exhibits[:-1][:MOVED]
            row = {"length": length, "learned": statistics.fmean(learned), "kept": statistics.fmean(kept)}
            row["first ten kept"] = statistics.fmean(kept[:10])
            row["plain prompts"], _ = examiner.plain_prompts(museum, count=PLAIN)
            row["newest moves its own prompt"] = share(base, newest, [newest.prompt], [newest.token])
            row["newest moves everyday prompts"] = share(base, newest, everyday, [])
            if earlier:
                moves = [share(base, newest, [other.prompt], [other.token]) for other in earlier]
                row["newest moves earlier prompts"] = statistics.fmean(moves)
            row |= {"norm": size(newest), "processor seconds": seconds}
            report["lengths"].append(row)
            write_json(RESULT, report)
            print(row, flush=True)


if __name__ == "__main__":
    main()
