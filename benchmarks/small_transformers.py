"""How well do the small transformers follow prompts, by the judge?

    python benchmarks/small_transformers.py

Writes `benchmarks/results/small_transformers/prompts.json` and `prompts.png`, a row for each network. The numbers are
those of `benchmarks/starter.py`: prompted attributes found, relative to drawn pictures. "latents" is their limit, drawn
pictures encoded and decoded.
"""

import json
from pathlib import Path

import torch

from clora_core.bench.measuring import machine
from clora_core.bench.small_transformers import SMALL, open_small
from clora_core.museum.museum import Museum
from clora_core.sheets import grid
from clora_core.starter.draw import drawings
from clora_core.starter.exam import Examiner, captioned, plain_requests
from clora_core.starter.judge import agreement, load_judge, read
from clora_core.starter.world import Scene

RESULTS = Path(__file__).parent / "results/small_transformers"
SAMPLES, SEED, SHOWN = 96, 1, 16


def main() -> None:
    judge, bases = load_judge(), {name: open_small(name) for name in SMALL}
    scenes = [scene for _, scene in plain_requests(SAMPLES, seed=SEED)]
    drawn = drawings(Scene(scene, "plain", seed=number) for number, scene in enumerate(scenes))

    def found(pictures: torch.Tensor) -> float:
        return agreement(read(judge, pictures), [captioned(scene) for scene in scenes]).mean().item()

    base = next(iter(bases.values()))  # all have the same latents
    shares = {"latents": found(base.decode_latents(base.encode_pictures(drawn))) / found(drawn)}
    shown = []
    for name, base in bases.items():
        shares[name], pictures = Examiner(base, judge).plain_prompts(Museum(base.fingerprint), count=SAMPLES, seed=SEED)
        shown.append(pictures[:SHOWN])
    report = {"found": shares, "samples": SAMPLES, "seed": SEED, "machine": machine(torch.device("cpu"))}
    text = json.dumps(report, indent=2)
    (RESULTS / "prompts.json").write_text(text + "\n", encoding="utf-8")
    grid(torch.cat(shown), columns=SHOWN).save(RESULTS / "prompts.png")
    print(text)


if __name__ == "__main__":
    main()
