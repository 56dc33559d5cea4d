"""How well do the small transformers follow prompts, by the judge, compared with the built-in model?

    python benchmarks/small_transformers.py

Writes `benchmarks/results/small_transformers.json` and `.png`. The share is of the attributes that plain prompts ask
for and the judge finds: in drawn pictures, in the same after the autoencoder (whole, and with the basis of the
networks), and in samples of each model.
"""

import json
from pathlib import Path

import torch

from clora_core.bench.measuring import machine
from clora_core.bench.small_transformers import WEIGHTS, open_small
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.sheets import grid
from clora_core.starter.draw import drawings
from clora_core.starter.exam import Examiner, captioned, plain_requests
from clora_core.starter.judge import agreement, load_judge, read
from clora_core.starter.world import Scene

RESULTS = Path(__file__).parent / "results"
SAMPLES, SEED, SHOWN = 200, 1, 24


def main() -> None:
    starter, judge = open_base("starter"), load_judge()
    requests = plain_requests(SAMPLES, seed=SEED)
    expected = [captioned(scene) for _, scene in requests]
    drawn = drawings(Scene(scene, "plain", seed=number) for number, (_, scene) in enumerate(requests))

    def found(pictures: torch.Tensor) -> float:
        return agreement(read(judge, pictures), expected).mean().item()

    shares = {"drawn": found(drawn), "autoencoder": found(starter.decode_latents(starter.encode_pictures(drawn)))}
    shown = []
    for name in ("starter", *sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))):
        base = starter if name == "starter" else open_small(name)
        if name != "starter":
            shares.setdefault("autoencoder, basis", found(base.decode_latents(base.encode_pictures(drawn))))
        _, pictures = Examiner(base, judge).plain_prompts(Museum(base.fingerprint), count=SAMPLES, seed=SEED)
        shares[name] = found(pictures)
        shown.append(pictures[:SHOWN])
    report = {"found": shares, "samples": SAMPLES, "seed": SEED, "machine": machine(torch.device("cpu"))}
    text = json.dumps(report, indent=2)
    (RESULTS / "small_transformers.json").write_text(text + "\n", encoding="utf-8")
    grid(torch.cat(shown), columns=SHOWN).save(RESULTS / "small_transformers.png")
    print(text)


if __name__ == "__main__":
    main()
