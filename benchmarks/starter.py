"""How well does the starter model follow prompts, by the judge, and how fast is it?

    python benchmarks/starter.py

Writes `benchmarks/results/starter.json` and `starter.png`.
"""

import json
import time
from pathlib import Path

import torch

from clora_core.bench.measuring import machine
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.sheets import grid
from clora_core.starter.exam import SIDE_PX, Examiner, drawn
from clora_core.starter.judge import identified, load_judge, read
from clora_core.starter.subjects import IDENTITIES

RESULTS = Path(__file__).parent / "results"
SAMPLES, SEED = 500, 1


def main() -> None:
    base, judge = open_base("starter"), load_judge()
    share, pictures = Examiner(base, judge).plain_prompts(Museum(base.fingerprint), count=SAMPLES, seed=SEED)
    sample(base, ["a photo of a cat"], latent_shape=base.latent_shape(SIDE_PX, SIDE_PX))
    begun = time.perf_counter()
    sample(base, ["a photo of a cat"], (), Sampling(steps=20), latent_shape=base.latent_shape(SIDE_PX, SIDE_PX))
    seconds = time.perf_counter() - begun
    recognized_shares = {
        name: identified(read(judge, drawn(name, 64, seed=77))).count(name) / 64 for name in IDENTITIES
    }
    report = {
        "prompted attributes found, relative to drawn pictures": share,
        "samples": SAMPLES,
        "seed": SEED,
        "seconds for one picture, 20 steps": seconds,
        "drawn identities that the judge tells apart": recognized_shares,
        "machine": machine(torch.device("cpu")),
    }
    text = json.dumps(report, indent=2)
    (RESULTS / "starter.json").write_text(text + "\n", encoding="utf-8")
    grid(pictures[:48], columns=12).save(RESULTS / "starter.png")
    print(text)


if __name__ == "__main__":
    main()
