"""Ways to keep two learned words of one prompt apart, compared: which text does each place of the picture read?

    python -m benchmarks.words_apart --museums out/demo/museum.safetensors ...   museums of the demo, of any recipe

Needs no ComfyUI: the cross-attentions of the built-in model are replaced. Each word has a clause, "a photo of <word>",
that is encoded by itself; the judge looks at each half of 64×128 pictures of all pairs of a museum's first three words.
Writes `benchmarks/results/words_apart.json`, where everything that was not measured again keeps its results.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from clora_core.bench.measuring import machine
from clora_core.model.base import Conditioning
from clora_core.model.sampling import ddim_step, timesteps
from clora_core.museum.file import load_museum
from clora_core.museum.museum import Museum, viewing
from clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_core.seeds import seeded
from clora_core.starter.judge import Judge, identified, load_judge, read

RESULT = Path(__file__).parent / "results/words_apart.json"
SIDE, STEPS, GUIDANCE, AT_ONCE = 8, 20, 5.0, 16  # SIDE: of a picture's latents, for each word
Rule = Callable[[Tensor], Tensor]  # how much each place attends to each clause (b, k, h, w) → shares of the same shape


def joined(scores: Tensor) -> Tensor:
    """Each place attends to all clauses."""
    return scores.softmax(1)


def most(scores: Tensor) -> Tensor:
    """Each place reads the clause that it attends to most."""
    return F.one_hot(scores.argmax(1), scores.shape[1]).movedim(-1, 1).float()


def smoothly(rule: Rule) -> Rule:
    """The rule after a Gaussian blur with a deviation of a quarter of the height."""

    def blurred(scores: Tensor) -> Tensor:
        height, width = scores.shape[-2:]
        across, along = (_blur(side, height / 4) for side in (height, width))
        return rule(across @ scores @ along.T)

    return blurred


def equal(scores: Tensor) -> Tensor:
    """`most`, with the clauses' scores shifted until each has the same number of places."""
    shift = torch.zeros(*scores.shape[:2], 1, 1)
    sharp = scores.std() / 20 + 1e-9
    for _ in range(200):
        shares = ((scores + shift) / sharp).softmax(1).mean((2, 3), keepdim=True) * scores.shape[1]
        shift = shift - sharp * shares.clamp_min(1e-6).log() / 2
    return most(scores + shift)


def strips(scores: Tensor) -> Tensor:
    """Equal strips from left to right, in the order of the words."""
    count, width = scores.shape[1], scores.shape[-1]
    strip = F.one_hot(torch.arange(width) * count // width, count).T
    return strip[None, :, None].expand_as(scores).float()


def strips_by_attention(scores: Tensor) -> Tensor:
    """Equal strips, in the order in which the places attend to them most."""
    orders = [list(order) for order in itertools.permutations(range(scores.shape[1]))]
    shares = torch.stack([strips(scores)[:, order] for order in orders], 1)  # (b, orders, k, h, w)
    best = (shares * scores[:, None]).sum((2, 3, 4)).argmax(1)
    return shares[torch.arange(len(best)), best]


@dataclass(frozen=True)
class Way:
    """rule: None for one plain prompt. decided: in how many steps; 0: in each attention anew. passes: whether each
    clause has a pass of its own, and the predictions are combined, not the attentions."""

    rule: Rule | None
    decided: int = 0
    passes: bool = False


WAYS = {
    "one prompt": Way(None),
    "clauses joined": Way(joined),
    "the clause attended to most": Way(most),
    "… decided in three steps, smoothly": Way(smoothly(most), decided=3),
    "… with equal shares": Way(smoothly(equal), decided=3),
    "equal strips, ordered by attention": Way(strips_by_attention, decided=1),
    "equal strips, a pass for each word": Way(strips, passes=True),
    "equal strips": Way(strips),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--museums", type=Path, nargs="+", required=True, help="files of three built-in characters")
    parser.add_argument("--pictures", type=int, default=16, help="of each two, for each way (16)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those to measure (all)")
    arguments = parser.parse_args()
    base, judge = open_base("starter"), load_judge()
    report = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"recipes": {}}
    report |= {"machine": machine(torch.device("cpu")), "pictures": arguments.pictures}
    for path in arguments.museums:
        museum = load_museum(path)
        found = report["recipes"].setdefault(museum.exhibits[0].recipe.method, {})
        for name in arguments.ways:
            scores = [
                scored(judge, sampled(base, museum, pair, WAYS[name], arguments.pictures), pair)
                for pair in itertools.combinations(museum.words[:3], 2)
            ]
            means = map(statistics.fmean, zip(*scores, strict=True))
            found[name] = dict(zip(("both", "in either order"), means, strict=True))
            print(f"{path}  {name:40}", found[name], flush=True)
            RESULT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def scored(judge: Judge, pictures: Tensor, words: Sequence[str]) -> tuple[float, float]:
    """Shares of the pictures with all words, each in its part, and in any order."""
    names = [word.strip("<>") for word in words]
    verdicts = [identified(read(judge, part.contiguous())) for part in pictures.chunk(len(words), dim=3)]
    groups = [list(group) for group in zip(*verdicts, strict=True)]
    return (
        statistics.fmean(group == names for group in groups),
        statistics.fmean(sorted(group) == sorted(names) for group in groups),
    )


@torch.no_grad()
def sampled(base: DiffusersBase, museum: Museum, words: Sequence[str], way: Way, count: int) -> Tensor:
    """Pictures (count, 3, 64, 64 · words), with DDIM."""
    prompts = [f"a photo of {word}" for word in words] if way.rule else [f"a photo of {' and '.join(words)}"]
    parts = []
    with viewing(base, museum.compact(), museum.gated):
        encoded = base.encode_prompts([*prompts, ""], museum.tokens)
        for begin in range(0, count, AT_ONCE):
            rows = range(begin, min(count, begin + AT_ONCE))
            shape = (base.family.latent_channels, SIDE, SIDE * len(words))
            latents = torch.stack([torch.randn(shape, generator=seeded("sample", 0, row)) for row in rows])
            predict = passes if way.passes else one_pass
            with predict(base, encoded, way, len(rows)) as predicted:
                times = timesteps(len(base.schedule.levels), STEPS)
                for time, before in zip(times, [*times[1:], None], strict=True):
                    conditional, empty = predicted(latents, time)
                    prediction = empty + GUIDANCE * (conditional - empty)
                    latents = ddim_step(latents, prediction, time, before, base.schedule)
            parts.append(base.decode_latents(latents))
    return torch.cat(parts).clamp(-1, 1)


@contextmanager
def passes(base: DiffusersBase, encoded: Conditioning, way: Way, count: int) -> Iterator[Callable]:
    """A pass of the network for each clause; the rule's shares combine their predictions."""
    clauses = len(encoded.states) - 1
    rows = torch.arange(clauses + 1).repeat_interleave(count)

    def predicted(latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
        noisy = latents.repeat(clauses + 1, 1, 1, 1)
        every = base.predict(noisy, torch.full((len(noisy),), time), encoded[rows]).unflatten(0, (-1, count))
        assert way.rule is not None
        shares = way.rule(every[:-1].transpose(0, 1).mean(2))  # strips do not depend on what they are given
        return (every[:-1].transpose(0, 1) * shares[:, :, None]).sum(1), every[-1]

    yield predicted


@contextmanager
def one_pass(base: DiffusersBase, encoded: Conditioning, way: Way, count: int) -> Iterator[Callable]:
    """One pass, in which the rule's shares combine what the cross-attentions read of each clause."""
    clauses = len(encoded.states) - 1
    rows = torch.tensor([[*range(clauses)]] * count + [[clauses] * clauses] * count)  # prompts, then empty ones
    places = {word: mask[rows].flatten(1) for word, mask in encoded.places.items()}
    conditioning = Conditioning(encoded.states[rows].flatten(1, 2), places=places)
    reader = Reader(way, clauses, count)
    attentions = [module for name, module in base.unet.named_modules() if name.endswith("attn2")]
    before = [attention.processor for attention in attentions]

    def predicted(latents: Tensor, time: int) -> tuple[Tensor, Tensor]:
        reader.size = (latents.shape[-2], latents.shape[-1])
        prediction = base.predict(torch.cat([latents, latents]), torch.full((2 * count,), time), conditioning)
        reader.step += 1
        conditional, empty = prediction.chunk(2)
        return conditional, empty

    for attention in attentions:
        attention.set_processor(reader)  # type: ignore[arg-type]
    try:
        yield predicted
    finally:
        for attention, processor in zip(attentions, before, strict=True):
            attention.set_processor(processor)


@dataclass
class Reader:
    """An attention processor of diffusers: attends to each clause by itself, and combines them by the rule's shares.

    total: the scores of all attentions so far, (b, k, h, w), at the size of the latents.
    """

    way: Way
    clauses: int
    count: int
    step: int = 0
    size: tuple[int, int] = (SIDE, SIDE)
    total: Tensor = field(default_factory=lambda: torch.zeros(1))
    shares: Tensor | None = None

    def __call__(
        self,
        attention: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        states = {"to_q": hidden_states, "to_k": encoder_hidden_states, "to_v": encoder_hidden_states}
        projected = [attention.get_submodule(name)(x) for name, x in states.items()]
        query, key, value = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in projected)
        key, value = (part.unflatten(2, (self.clauses, -1)) for part in (key, value))
        logits = torch.einsum("bhnd,bhktd->bhnkt", query, key) * attention.scale
        each = torch.einsum("bhnkt,bhktd->bhnkd", logits.softmax(-1), value)
        if self.way.rule in (None, joined):
            shares = logits.logsumexp(-1).softmax(-1)[..., None]  # (b, heads, n, k, 1): as in one long prompt
        else:
            shares = self._shares(logits.logsumexp(-1).mean(1))
        mixed = (each * shares).sum(3)
        return attention.get_submodule("to_out.0")(mixed.transpose(1, 2).flatten(2))

    def _shares(self, scores: Tensor) -> Tensor:
        """(b, 1, n, k, 1), with equal shares for the empty prompts. scores: (b, n, k)."""
        factor = round((self.size[0] * self.size[1] / scores.shape[1]) ** 0.5)
        sides = self.size[0] // factor, self.size[1] // factor
        scores = scores[: self.count].transpose(1, 2).unflatten(2, sides)
        if self.step < self.way.decided:
            wide = F.interpolate(scores, self.size, mode="bilinear")
            self.total = self.total + wide - wide.mean((1, 2, 3), keepdim=True)
        elif self.shares is None and self.way.decided:
            self.shares = self._rule(self.total)
        shares = self._rule(scores) if self.shares is None else F.interpolate(self.shares, sides, mode="area")
        shares = torch.cat([shares, torch.full_like(shares, 1 / self.clauses)])
        return shares.flatten(2).transpose(1, 2)[:, None, :, :, None]

    def _rule(self, scores: Tensor) -> Tensor:
        assert self.way.rule is not None
        return self.way.rule(scores)


def _blur(side: int, deviation: float) -> Tensor:
    """A matrix that blurs a line of that many places."""
    places = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
    return weights / weights.sum(1, keepdim=True)


if __name__ == "__main__":
    main()
