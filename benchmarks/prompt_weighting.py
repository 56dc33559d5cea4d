"""Weight exhibits by the prompt while sampling, as in CIDM: is that better than the sum of all exhibits?

    python -m benchmarks.prompt_weighting

Learns the ten built-in characters separately (recipe `separate`) and samples them with the base model alone, with only
the exhibit of the prompt (an oracle), with the sum of all exhibits, and with all exhibits weighted by the prompt
("elastic weight aggregation", arXiv:2410.17594), as in the paper and as in its code:

    Δ = Σ_i ψ_i Δ_i        m_i = max over the prompt's places and the word's of cos(state, state of word i)
    paper: ψ = m² / ‖m²‖₂      code: ψ = m⁴ / ‖m⁴‖₁

The states are the text encoder's. CIDM has words and weights for each cross-attention; here they are the same for all.
Writes `benchmarks/results/prompt_weighting.json`.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clora_core.bench.measuring import machine
from clora_core.commands.progress import watched_bar
from clora_core.learning.learn import learn
from clora_core.model.base import Base
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.file import load_museum, save_museum
from clora_core.museum.museum import Museum, viewing
from clora_core.over_diffusers.base import open_base
from clora_core.starter.course import PICTURES, VECTORS, starter_recipe
from clora_core.starter.exam import SIDE_PX, Examiner, captioned, concept_of, plain_requests
from clora_core.starter.judge import agreement, identified, load_judge, read
from clora_core.starter.subjects import IDENTITIES

RESULT = Path(__file__).parent / "results/prompt_weighting.json"
Weighting = Callable[[Museum, str], Mapping[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--museum", type=Path, help="file of the learned museum; used if it exists, else written")
    parser.add_argument("--samples", type=int, default=32, help="pictures of each character (32)")
    parser.add_argument("--plain", type=int, default=96, help="prompts without a learned word (96)")
    parser.add_argument("--steps", type=int, default=600, help="updates per character (600)")
    arguments = parser.parse_args()
    base = open_base("starter")
    examiner = Examiner(base, load_judge())
    museum = learned_museum(base, arguments.museum, arguments.steps)
    methods: dict[str, Weighting] = {
        "untouched": lambda museum, prompt: dict.fromkeys(museum.words, 0.0),
        "its own exhibit alone": lambda museum, prompt: {word: float(word in prompt) for word in museum.words},
        "summed": lambda museum, prompt: dict.fromkeys(museum.words, 1.0),
        "weighted, as in the paper": lambda museum, prompt: elastic(base, museum, prompt, power=2, norm=2),
        "weighted, as in the code": lambda museum, prompt: elastic(base, museum, prompt, power=4, norm=1),
    }
    scores = {}
    for method, weighting in methods.items():
        shares = [recognized_share(examiner, museum, word, weighting, arguments.samples) for word in museum.words]
        scores[method] = {
            "recognized": statistics.fmean(shares),
            "plain prompts": plain_share(examiner, museum, weighting, arguments.plain),
        }
        print(f"{method:30}" + "".join(f"{name} {share:5.2f}   " for name, share in scores[method].items()))
    numbers = {"samples": arguments.samples, "plain": arguments.plain, "steps": arguments.steps, "seed": 0}
    report = {"machine": machine(base.device), **numbers, "scores": scores}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def learned_museum(base: Base, path: Path | None, steps: int) -> Museum:
    """The ten characters, each learned over the base alone."""
    if path and path.exists():
        return load_museum(path)
    museum, recipe = Museum(base.fingerprint), starter_recipe("separate", steps=steps)
    for name in IDENTITIES:
        with watched_bar(f"learning <{name}>", steps) as report:
            concept = concept_of(name, PICTURES, seed=0, vectors=VECTORS)
            museum = museum.with_exhibits(*learn(base, museum, [concept], recipe, report=report))
    if path:
        save_museum(museum, path)
    return museum


@torch.no_grad()
def elastic(base: Base, museum: Museum, prompt: str, *, power: int, norm: int) -> dict[str, float]:
    """word → ψ of its exhibit for this prompt."""
    states = base.encode_prompts([prompt], museum.tokens).states[0]
    alike = []
    for exhibit in museum.exhibits:
        own = base.encode_prompts([exhibit.prompt], [exhibit.token])
        word = own.states[0][own.places[exhibit.word][0]]
        alike.append(torch.nn.functional.cosine_similarity(states[:, None], word[None], dim=2).max())
    raised = torch.stack(alike).clamp_min(0) ** power
    return dict(zip(museum.words, (raised / raised.norm(norm)).tolist(), strict=True))


def recognized_share(examiner: Examiner, museum: Museum, word: str, weighting: Weighting, count: int) -> float:
    """The share of a word's pictures in which the judge recognizes its character, among all ten."""
    pictures = weighted_samples(examiner.base, museum, [museum.exhibit(word).prompt] * count, weighting, seed=0)
    return identified(read(examiner.judge, pictures), IDENTITIES).count(word.strip("<>")) / count


def plain_share(examiner: Examiner, museum: Museum, weighting: Weighting, count: int) -> float:
    """The share of what plain prompts ask for that is visible."""
    requests = plain_requests(count, seed=0)
    pictures = torch.cat(
        [
            weighted_samples(examiner.base, museum, [prompt], weighting, seed=number)
            for number, (prompt, _) in enumerate(requests)
        ]
    )
    return (
        agreement(read(examiner.judge, pictures), [captioned(attributes) for _, attributes in requests]).mean().item()
    )


def weighted_samples(base: Base, museum: Museum, prompts: Sequence[str], weighting: Weighting, *, seed: int) -> Tensor:
    """Pictures of prompts that are all the same."""
    with viewing(base, museum.dense(weighting(museum, prompts[0]))):
        return sample(
            base, prompts, museum.tokens, Sampling(seed=seed), latent_shape=base.latent_shape(SIDE_PX, SIDE_PX)
        )


if __name__ == "__main__":
    main()
