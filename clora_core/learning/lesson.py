"""The pictures of one concept, ready for training: latents are encoded once, prompts as needed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BaseModelError
from ..method.recipe import Recipe
from ..method.step import Deltas, Step
from ..model.base import Base, Conditioning
from ..model.concept import Concept, ConceptToken, words_in
from ..pictures import Picture, Size
from ..seeds import seeded
from .start import Trained
from .stopping import LEAST_PICTURES
from .variation import check_lines, possible_prompts, varied_prompts, varies

REFERENCE_DRAWS = 8
ENCODED_AT_ONCE = 4  # pictures


@dataclass(frozen=True, eq=False)
class Bucket:
    """The pictures of one size.

    places: their numbers in the concept, (n,). latents: (views, n, c, h, w) or (views, n, c, 1, h, w) on the CPU; a
    second view holds the mirrored pictures. masks: how much each latent pixel counts, as one channel of the latents;
    None if no picture has a mask.
    """

    places: Tensor
    latents: Tensor
    masks: Tensor | None = None

    @classmethod
    def encoded(cls, base: Base, pictures: Sequence[Picture], places: Sequence[int], *, mirrored: bool) -> "Bucket":
        """Read and encode the pictures with these numbers, all of one size, a few at a time; repeated ones once.

        Raises BaseModelError for latents that are not finite.
        """
        own = [pictures[place] for place in places]
        different = list({id(picture): picture for picture in own}.values())
        parts = []
        for start in range(0, len(different), ENCODED_AT_ONCE):
            pixels = torch.stack([picture.read() for picture in different[start : start + ENCODED_AT_ONCE]])
            views = [pixels, pixels.flip(-1)] if mirrored else [pixels]
            parts.append(torch.stack([base.encode_pictures(view) for view in views]))
            if not parts[-1].isfinite().all():
                raise BaseModelError(
                    "The VAE produces latents that are not finite. Use another VAE, or this one in fp32 or bf16 "
                    "(ComfyUI: --fp32-vae); SDXL's own VAE often fails in fp16."
                )
        numbers = {id(picture): number for number, picture in enumerate(different)}
        latents = torch.cat(parts, dim=1)
        if len(different) < len(own):
            latents = latents[:, [numbers[id(picture)] for picture in own]]
        if not any(picture.read_mask for picture in own):
            return cls(torch.tensor(places), latents)
        size = own[0].size
        whole = [picture.read_mask() if picture.read_mask else torch.ones(size) for picture in own]
        small = [F.adaptive_avg_pool2d(mask[None, None], (latents.shape[-2], latents.shape[-1]))[0] for mask in whole]
        masks = torch.stack(small).view(-1, 1, *latents.shape[3:])
        return cls(torch.tensor(places), latents, torch.stack([masks, masks.flip(-1)] if mirrored else [masks]))


@dataclass(frozen=True, eq=False)
class Lesson:
    """buckets: the pictures by size; a batch comes from one bucket.

    known: the earlier words that its prompts mention. new_words: the words in its prompts that are being learned.
    left_out: the picture that is not trained on, if the recipe stops by it and there are enough. encoded: every prompt
    that a step can use → its row, and these rows on the CPU, if the words are frozen.
    """

    base: Base
    concept: Concept
    recipe: Recipe
    buckets: Sequence[Bucket]
    known: Sequence[ConceptToken] = ()
    new_words: Sequence[str] = ()
    left_out: Bucket | None = None
    encoded: tuple[Mapping[str, int], Conditioning] | None = None

    @classmethod
    def prepared(
        cls,
        base: Base,
        concept: Concept,
        recipe: Recipe,
        known: Sequence[ConceptToken] = (),
        new_words: Sequence[str] = (),
    ) -> "Lesson":
        """Encode every picture once. known, new_words: the other words that its prompts may mention.

        Raises ConceptError for a line of a caption that is used alone and does not mention the word.
        """
        check_lines(concept, recipe)
        pictures: Sequence[Picture] = concept.pictures
        by_size: dict[Size, list[int]] = {}
        left_out = _left_out(pictures) if recipe.stop_when_learned else None
        for place, picture in enumerate(pictures):
            if left_out is None or picture.digest != pictures[left_out].digest:
                by_size.setdefault(picture.size, []).append(place)
        buckets = [Bucket.encoded(base, pictures, places, mirrored=recipe.flip) for places in by_size.values()]
        held = None if left_out is None else Bucket.encoded(base, pictures, [left_out], mirrored=False)
        prompts = "\n".join(concept.prompts())
        new_words = list(dict.fromkeys((concept.word, *new_words)))
        mentioned = set(words_in(prompts, [*new_words, *(token.word for token in known)]))
        known = [token for token in known if token.word in mentioned]
        new_words = [word for word in new_words if word in mentioned]
        return cls(base, concept, recipe, buckets, known, new_words, held)

    @torch.no_grad()
    def with_frozen(self, words: Mapping[str, ConceptToken]) -> "Lesson":
        """The lesson with all of its prompts encoded. words: those that are being learned."""
        prompts = dict.fromkeys(possible_prompts(self.concept, self.recipe))
        own = [words[word] for word in self.new_words]
        encoded = self.base.encode_prompts(list(prompts), [*own, *self.known]).to(torch.device("cpu"))
        return replace(self, encoded=({prompt: row for row, prompt in enumerate(prompts)}, encoded))

    def step(self, number: int, trained: Trained) -> Step:
        """The forward pass of batch `number`. It depends on the number and the trained parameters only."""
        recipe = self.recipe
        bucket, turn = self._bucket_at(number)
        first = turn * recipe.batch_size
        chosen = torch.tensor([self._picture_at(bucket, first + place) for place in range(recipe.batch_size)])
        rng = seeded("batch", recipe.seed, number)
        views = self.buckets[bucket].latents
        view = torch.randint(len(views), (len(chosen),), generator=rng)
        timesteps = torch.randint(len(self.base.schedule.levels), (len(chosen),), generator=rng)
        latents = views[view, chosen]
        noise = torch.randn(latents.shape, generator=rng)
        places = self.buckets[bucket].places[chosen]
        prompts = (
            varied_prompts(self.concept, recipe, number, places.tolist(), self.new_words) if varies(recipe) else None
        )
        tokens = map(trained.token, self.new_words)
        conditioning = self._sized(self.conditioning(places, *tokens, prompts=prompts), places)
        masks = self.buckets[bucket].masks
        step = self._predicted(number, latents, noise, timesteps, conditioning, trained.deltas)
        return step if masks is None else replace(step, mask=masks[view, chosen].to(self.base.device))

    def reference_loss(
        self,
        *tokens: ConceptToken,
        bucket: Bucket | None = None,
        report: Callable[[int], None] = lambda count: None,
    ) -> float:
        """The mean squared error of the current model on these pictures, at eight evenly spread timesteps."""
        predictions, targets = self.reference(lambda chosen: self.conditioning(chosen, *tokens), report, bucket)
        return (predictions - targets).square().flatten(1).mean(1).mean().item()

    @torch.no_grad()
    def reference(
        self,
        conditioning_of: Callable[[Tensor], Conditioning],
        report: Callable[[int], None] = lambda count: None,
        bucket: Bucket | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The current model's predictions for eight noised pictures, always the same ones, and the targets.

        bucket: which ones; by default those of the most common size. conditioning_of: the numbers of some pictures,
        (b,) → their encoded prompts. Both results have the shape of the latents, (8, …). report: called after every
        batch with its number of pictures; may raise to stop.
        """
        count = len(self.base.schedule.levels)
        timesteps = torch.arange(REFERENCE_DRAWS) * count // REFERENCE_DRAWS + count // (2 * REFERENCE_DRAWS)
        bucket = bucket or max(self.buckets, key=lambda bucket: len(bucket.places))
        chosen = torch.arange(REFERENCE_DRAWS) % len(bucket.places)
        latents, places = bucket.latents[0, chosen], bucket.places[chosen]
        noise = torch.randn(latents.shape, generator=seeded("reference", self.recipe.seed))
        steps = []
        for start in range(0, REFERENCE_DRAWS, self.recipe.batch_size):
            part = slice(start, start + self.recipe.batch_size)
            conditioning = self._sized(conditioning_of(places[part]), places[part])
            steps.append(self._predicted(0, latents[part], noise[part], timesteps[part], conditioning, {}))
            report(len(latents[part]))
        return torch.cat([step.prediction for step in steps]), torch.cat([step.target for step in steps])

    def conditioning(self, chosen: Tensor, *tokens: ConceptToken, prompts: Sequence[str] | None = None) -> Conditioning:
        """The encoded prompts of the pictures with these numbers, (b,): their captions, or `prompts`."""
        captions = self.concept.prompts()
        prompts = prompts or [captions[index] for index in chosen.tolist()]
        if self.encoded:
            rows, encoded = self.encoded
            return encoded[torch.tensor([rows[prompt] for prompt in prompts])].to(self.base.device)
        different = list(dict.fromkeys(prompts))
        encoded = self.base.encode_prompts(different, [*tokens, *self.known])
        rows = torch.tensor([different.index(prompt) for prompt in prompts], device=encoded.states.device)
        return encoded[rows]

    def _sized(self, conditioning: Conditioning, places: Tensor) -> Conditioning:
        """With the sizes of the pictures with these numbers, (b,)."""
        pictures = [self.concept.pictures[place] for place in places.tolist()]
        sizes = torch.tensor([[*picture.original, *picture.crop, *picture.size] for picture in pictures])
        return replace(conditioning, sizes=sizes)

    def _predicted(
        self, number: int, latents: Tensor, noise: Tensor, timesteps: Tensor, conditioning: Conditioning, deltas: Deltas
    ) -> Step:
        base, device = self.base, self.base.device
        latents, noise, timesteps = latents.to(device), noise.to(device), timesteps.to(device)
        prediction = base.predict(base.schedule.noised(latents, noise, timesteps), timesteps, conditioning)
        target = base.schedule.target(latents, noise, timesteps)
        return Step(number, latents, noise, timesteps, conditioning, prediction, target, deltas)

    def _bucket_at(self, number: int) -> tuple[int, int]:
        """The bucket of a batch, and the number of its earlier batches. Buckets have batches in proportion to their
        pictures."""
        owners = torch.arange(len(self.buckets)).repeat_interleave(torch.tensor([len(b.places) for b in self.buckets]))
        cycle, position = divmod(number, len(owners))
        order = owners[torch.randperm(len(owners), generator=seeded("buckets", self.recipe.seed, cycle))]
        bucket = int(order[position])
        return bucket, cycle * len(self.buckets[bucket].places) + int((order[:position] == bucket).sum())

    def _picture_at(self, bucket: int, place: int) -> int:
        """The pictures of a bucket come in rounds: every picture once, in a new order."""
        count = len(self.buckets[bucket].places)
        round_number, position = divmod(place, count)
        name = ("order", self.recipe.seed, round_number, *([bucket] if bucket else []))
        order = torch.randperm(count, generator=seeded(*name))
        return int(order[position])


def _left_out(pictures: Sequence[Picture]) -> int | None:
    """The number of the picture that is not trained on: the last one of the most common size. None if there are few."""
    if len({picture.digest for picture in pictures}) < LEAST_PICTURES:
        return None
    common, _ = Counter(picture.size for picture in pictures).most_common(1)[0]
    return max(place for place, picture in enumerate(pictures) if picture.size == common)
