"""The cost of an earlier museum in a training step, whole and as its factors: one projection of Wan 14B's size.

    python -m benchmarks.past_forms [--json FILE]

What is timed, in turns: Δ·x of 512 text tokens with the gradient to x, as every recipe needs it, and C-LoRA's penalty
with its gradients. float32, exhibits of rank 16, medians of seven.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clora_core.bench.measuring import machine
from clora_core.method.regularizers.self_regularization import LowRankOverlap
from clora_core.model.attachment import Attachment
from clora_core.model.low_rank import LowRank, Matrix
from clora_core.model.projections import Projection

SIDE, TOKENS, RANK, ROUNDS = 5120, 512, 16, 7


def seconds(run: Callable[[], torch.Tensor]) -> float:
    begun = time.perf_counter()
    run().backward()
    return time.perf_counter() - begun


def factors(rank: int, seed: int) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(SIDE, rank, generator=rng), torch.randn(rank, SIDE, generator=rng))


def measured(exhibits: int) -> dict[str, float]:
    place, past, new = (
        Projection("blocks.0.cross_attn.k", "key", (SIDE, SIDE)),
        factors(RANK * exhibits, 0),
        factors(RANK, 1),
    )
    new = LowRank(new.up.requires_grad_(), new.down.requires_grad_())
    x = torch.randn(1, TOKENS, SIDE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    forms: dict[str, Matrix] = {"whole": past.dense(), "factors": past}
    attached = {name: Attachment({place: matrix}) for name, matrix in forms.items()}
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, matrix in forms.items():
            held = matrix if isinstance(matrix, torch.Tensor) else [matrix]
            runs = {
                "added": lambda name=name: attached[name].moved(place, x).square().sum(),
                "penalty": lambda held=held: LowRankOverlap.apply(held, new.up, new.down),
            }
            for what, run in runs.items():
                times.setdefault(f"{what}, {name}", []).append(seconds(run))
    return {name: round(statistics.median(each), 4) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [{"exhibits": count, "seconds": measured(count)} for count in (10, 50, 100)]
    for row in rows:
        print(json.dumps(row), flush=True)
    if arguments.json:
        report = {"machine": machine(torch.device("cpu")), "side": SIDE, "tokens": TOKENS, "rank": RANK, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
