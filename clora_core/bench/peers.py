"""What `bench step` compares: the same training by several implementations, each a function that reports its losses.

All of them train the same word and, but for the floor, low-rank deltas of the same rank on the keys and values of the
cross-attentions, on the same batches, with AdamW and gradient clipping.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..learning.learn import learn
from ..learning.lesson import Lesson
from ..learning.start import start
from ..method.recipe import Recipe, recipe_named
from ..method.regularizers import SelfRegularization
from ..model.concept import Concept
from ..museum.museum import Museum
from ..over_diffusers.base import DiffusersBase
from ..over_diffusers.checkpoints import Parts

METHODS = ("c-lora", "preservation", "word-gated-onwards")
LAMBDA = 1e6  # C-LoRA's absolute λ, so that all implementations have the same one

Side = Callable[[Callable[[float], None]], None]  # trains; calls its argument with the loss after every step


@dataclass(frozen=True, eq=False)
class Work:
    """What all sides do. museums: number of earlier exhibits → random ones of the recipe's rank."""

    base: DiffusersBase
    concept: Concept
    recipe: Recipe
    museums: Mapping[int, Museum]

    def sides(self, *, peers: bool) -> dict[str, Side]:
        """By name: the floor and C-LoRA, or everything that it is compared with, too."""
        found: dict[str, Side] = {"floor": self.floor}
        for method in METHODS if peers else METHODS[:1]:
            for past in self.museums:
                found[f"{method}, {past} earlier"] = lambda report, m=method, p=past: self.ours(m, p, report)
        if peers:
            found["peft LoRA"] = self.peft
            for past in self.museums:
                found[f"plain C-LoRA, {past} earlier"] = lambda report, p=past: self.plain(p, report)
        return found

    def floor(self, report: Callable[[float], None]) -> None:
        """The frozen model's own forward and backward pass: only the word is trained, as in textual inversion."""
        self._train(self.base, [], report)

    def ours(self, method: str, past: int, report: Callable[[float], None]) -> None:
        """The engine's own `learn` with one of its recipes. The earlier exhibits were learned with the same one."""
        recipe = self.recipe_of(method)
        exhibits = tuple(replace(exhibit, recipe=recipe) for exhibit in self.museums[past].exhibits)
        museum = Museum(self.base.fingerprint, exhibits)
        learn(self.base, museum, [self.concept], recipe, report=lambda progress: report(progress.loss))

    def peft(self, report: Callable[[float], None]) -> None:
        """peft's LoRA, without a past."""
        base = twin(self.base)
        factors = list(with_peft(base, self.recipe.rank).values())
        self._train(base, factors, report)

    def plain(self, past: int, report: Callable[[float], None]) -> None:
        """C-LoRA as anyone would write it. It starts from the values that ours starts from."""
        base, layers = twin(self.base), []
        first = start(base, [self.concept], self.recipe, Museum(base.fingerprint)).deltas
        exhibits = self.museums[past].exhibits
        for place, slot in base.slots.items():
            earlier = [(e.deltas[place].up.to(base.device), e.deltas[place].down.to(base.device)) for e in exhibits]
            assert isinstance(slot.module, nn.Linear)
            layers.append(PlainCLoRA(slot.module, earlier, first[place].up, first[place].down))
            base.unet.set_submodule(place.path, layers[-1])
        factors = [factor for layer in layers for factor in (layer.up, layer.down)]
        self._train(base, factors, report, lambda: LAMBDA * sum(layer.penalty() for layer in layers) if past else 0.0)

    def recipe_of(self, method: str) -> Recipe:
        """The method with the numbers of `recipe`, and for C-LoRA with the absolute λ."""
        named = recipe_named(method)
        regularizers = (SelfRegularization(LAMBDA, relative=False),) if method == "c-lora" else named.regularizers
        own = {"applied": named.applied, "word_fit": named.word_fit}
        return replace(self.recipe, method=method, regularizers=regularizers, **own)

    def _train(
        self,
        base: DiffusersBase,
        factors: Sequence[nn.Parameter],
        report: Callable[[float], None],
        penalty: Callable[[], Tensor | float] = lambda: 0.0,
    ) -> None:
        """A training loop as anyone would write it."""
        recipe = self.recipe
        lesson = Lesson.prepared(base, self.concept, recipe)
        word = start(base, [self.concept], replace(recipe, rank=0), Museum(base.fingerprint))
        words = list(word.parameters().values())
        groups = [{"params": factors, "lr": recipe.learning_rate}, {"params": words, "lr": recipe.token_learning_rate}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        with base.learning(precision=recipe.precision, checkpointing=recipe.checkpointing):
            for factor in factors:
                factor.requires_grad_()
            for number in range(recipe.steps):
                step = lesson.step(number, word)
                loss = F.mse_loss(step.prediction, step.target) + penalty()
                loss.backward()
                nn.utils.clip_grad_norm_([*factors, *words], recipe.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                report(loss.item())


class PlainCLoRA(nn.Module):
    """C-LoRA (arXiv:2304.06027) on one projection, straight from its equations: every delta becomes a dense matrix,
    autograd does the rest, and the past is a list of (up, down), summed in each forward pass."""

    def __init__(self, linear: nn.Linear, earlier: Sequence[tuple[Tensor, Tensor]], up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.linear, self.earlier = linear, earlier
        self.up, self.down = nn.Parameter(up.detach().clone()), nn.Parameter(down.detach().clone())
        self.past = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight + self.up @ self.down
        if self.earlier:
            self.past = torch.zeros_like(weight)
            for up, down in self.earlier:
                self.past = self.past + up @ down
            weight = weight + self.past
        return F.linear(x, weight, self.linear.bias)

    def penalty(self) -> Tensor:
        """‖past ∘ (up·down)‖²_F, with the past of the last forward pass."""
        return (self.past * (self.up @ self.down)).square().sum()


def twin(base: DiffusersBase) -> DiffusersBase:
    """The base over a copy of its UNet with the same weights in memory, whose modules can be replaced."""
    shared: dict[int, object] = {id(weight): weight for weight in base.unet.parameters()}
    unet = copy.deepcopy(base.unet, shared)
    return DiffusersBase(Parts(unet, base.vae, base.encoders, base.schedule), dtype=unet.dtype, device=base.device)


def with_peft(base: DiffusersBase, rank: int) -> dict[str, nn.Parameter]:
    """Put peft's LoRA on the projections, in float32, and return its parameters by name."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [projection.path for projection in base.slots]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), base.unet)
    factors = {name: value for name, value in base.unet.named_parameters() if "lora_" in name}
    for value in factors.values():
        value.data = value.data.float()
    return factors
