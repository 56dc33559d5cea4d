"""The pictures of one concept, ready for training: cached latents, and prompts that are encoded as needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.recipe import Recipe
from ..method.step import Deltas, Step
from ..model.base import Base, Conditioning
from ..model.concept import Concept, ConceptToken, mentions
from ..seeds import seeded
from .start import Trained

REFERENCE_DRAWS = 8


@dataclass(frozen=True, eq=False)
class Lesson:
    """latents: (views, n, c, h, w) on the CPU; the second view, if there is one, holds the mirrored pictures.

    known, taught: the words that its prompts mention, those of earlier exhibits, and those that are learned.
    """

    base: Base
    concept: Concept
    recipe: Recipe
    latents: Tensor
    known: Sequence[ConceptToken] = ()
    taught: Sequence[str] = ()

    @classmethod
    def prepared(
        cls,
        base: Base,
        concept: Concept,
        recipe: Recipe,
        known: Sequence[ConceptToken] = (),
        taught: Sequence[str] = (),
    ) -> "Lesson":
        """Encode every picture once. known, taught: what its prompts may mention besides its own word."""
        views = [concept.pictures, concept.pictures.flip(-1)] if recipe.flip else [concept.pictures]
        latents = torch.stack([base.encode_pictures(view) for view in views])
        prompts = "\n".join(concept.prompts())
        known = [token for token in known if mentions(prompts, token.word)]
        taught = [word for word in dict.fromkeys((concept.word, *taught)) if mentions(prompts, word)]
        return cls(base, concept, recipe, latents, known, taught)

    def step(self, number: int, trained: Trained) -> Step:
        """The forward pass of batch `number`, which depends on nothing but the number and what was trained."""
        recipe = self.recipe
        places = range(number * recipe.batch_size, (number + 1) * recipe.batch_size)
        chosen = torch.tensor([self._picture_at(place) for place in places])
        rng = seeded("batch", recipe.seed, number)
        view = torch.randint(len(self.latents), (len(chosen),), generator=rng)
        timesteps = torch.randint(len(self.base.schedule.alphas_cumprod), (len(chosen),), generator=rng)
        latents = self.latents[view, chosen]
        noise = torch.randn(latents.shape, generator=rng)
        conditioning = self.conditioning(chosen, *map(trained.token, self.taught))
        return self._shown(number, latents, noise, timesteps, conditioning, trained.deltas)

    def reference_loss(self, *tokens: ConceptToken) -> float:
        """The mean squared error of the model as it stands on these pictures, at eight timesteps spread evenly."""
        predictions, targets = self.reference(lambda chosen: self.conditioning(chosen, *tokens))
        return (predictions - targets).square().flatten(1).mean(1).mean().item()

    @torch.no_grad()
    def reference(self, conditioning_of: Callable[[Tensor], Conditioning]) -> tuple[Tensor, Tensor]:
        """What the model as it stands predicts, and should, for eight noisy pictures, the same ones every time.

        conditioning_of: the numbers of some pictures, (b,) → their encoded prompts. Both results are (8, c, h, w).
        """
        count = len(self.base.schedule.alphas_cumprod)
        timesteps = torch.arange(REFERENCE_DRAWS) * count // REFERENCE_DRAWS + count // (2 * REFERENCE_DRAWS)
        chosen = torch.arange(REFERENCE_DRAWS) % self.latents.shape[1]
        latents = self.latents[0, chosen]
        noise = torch.randn(latents.shape, generator=seeded("reference", self.recipe.seed))
        steps = []
        for start in range(0, REFERENCE_DRAWS, self.recipe.batch_size):
            part = slice(start, start + self.recipe.batch_size)
            steps.append(self._shown(0, latents[part], noise[part], timesteps[part], conditioning_of(chosen[part]), {}))
        return torch.cat([step.prediction for step in steps]), torch.cat([step.target for step in steps])

    def conditioning(self, chosen: Tensor, *tokens: ConceptToken) -> Conditioning:
        """The encoded prompts of the pictures with these numbers, (b,). Every prompt is encoded once."""
        prompts = self.concept.prompts()
        wanted = [prompts[index] for index in chosen.tolist()]
        different = list(dict.fromkeys(wanted))
        encoded = self.base.encode_prompts(different, [*tokens, *self.known])
        return encoded[torch.tensor([different.index(prompt) for prompt in wanted], device=encoded.states.device)]

    def _shown(
        self, number: int, latents: Tensor, noise: Tensor, timesteps: Tensor, conditioning: Conditioning, deltas: Deltas
    ) -> Step:
        base, device = self.base, self.base.device
        latents, noise, timesteps = latents.to(device), noise.to(device), timesteps.to(device)
        prediction = base.predict(base.schedule.noised(latents, noise, timesteps), timesteps, conditioning)
        target = base.schedule.target(latents, noise, timesteps)
        return Step(number, latents, noise, timesteps, conditioning, prediction, target, deltas)

    def _picture_at(self, place: int) -> int:
        """Pictures come in rounds: each once, in a new order every time."""
        count = self.latents.shape[1]
        round_number, position = divmod(place, count)
        order = torch.randperm(count, generator=seeded("order", self.recipe.seed, round_number))
        return int(order[position])
