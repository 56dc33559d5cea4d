"""Go through a museum: every exhibit as it was when it was learned and as it is now, and prompts without its words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from ..errors import MuseumError, RecipeError
from ..model.base import Base
from ..model.concept import TEMPLATES, mentions
from ..model.sampling import Sampling
from ..museum.museum import Exhibit, Museum
from ..museum.overlap import overlap_matrix, size
from ..pictures import from_thumbnail
from .comparing import Compared, Comparing, State

OVERLAPS_UP_TO = 32  # exhibits; every pair is compared weight by weight
AT_ONCE = 4  # pictures that are sampled together


@dataclass(frozen=True)
class Looks:
    """How much is looked at, and how it is sampled. The same looks at the same museum make the same report.

    pictures: for each exhibit. everyday: prompts without a learned word, one picture each. steps, guidance and seed are
    those of sampling.
    """

    pictures: int = 4
    everyday: int = 8
    steps: int = 20
    guidance: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.everyday < 1:
            raise RecipeError(
                f"A report looks at 1 picture of every exhibit and 1 everyday prompt at least, not at {self.pictures} "
                f"and {self.everyday}."
            )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.steps, self.guidance, self.seed, batch_size=AT_ONCE)


@dataclass(frozen=True, eq=False)
class Report:
    """What was seen. exhibits: in the museum's order; overlap: (exhibits, exhibits), None if there are too many.

    An exhibit's `then` is the museum up to it (and what was learned together with it), and an everyday prompt's is the
    base model alone; `now` is all of it.
    """

    museum: Museum
    exhibits: tuple[Compared, ...]
    everyday: Compared
    overlap: Tensor | None

    @property
    def forgetting(self) -> list[float]:
        """How far each exhibit's predictions moved since it was learned, by what stands after it."""
        return [compared.moved.mean().item() for compared in self.exhibits]

    @property
    def damage(self) -> float:
        """How far the predictions for everyday prompts moved from the base model's."""
        return self.everyday.moved.mean().item()

    @property
    def first_pictures(self) -> list[Image.Image | None]:
        """The picture that each exhibit keeps of what it was learned from, if it does."""
        kept = [exhibit.thumbnail for exhibit in self.museum.exhibits]
        return [from_thumbnail(encoded) if encoded else None for encoded in kept]

    def numbers(self) -> dict[str, object]:
        """All that was measured, for programs."""
        exhibits = [
            {"word": exhibit.word, "prompt": compared.prompts[0], "norm": size(exhibit), "moved": moved}
            for exhibit, compared, moved in zip(self.museum.exhibits, self.exhibits, self.forgetting, strict=True)
        ]
        prompts = [
            {"prompt": prompt, "moved": moved}
            for prompt, moved in zip(self.everyday.prompts, self.everyday.moved.tolist(), strict=True)
        ]
        return {
            "base": {"architecture": self.museum.base.family, "digest": self.museum.base.digest},
            "exhibits": exhibits,
            "everyday": {"moved": self.damage, "prompts": prompts},
            "overlap": None if self.overlap is None else self.overlap.tolist(),
        }


def reviewed(
    base: Base,
    museum: Museum,
    looks: Looks = Looks(),
    *,
    latent_shape: tuple[int, int, int],
    report: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at all of a museum. latent_shape: (channels, h', w') of the pictures.

    `report(done, of)` hears of every step and may raise to stop. Raises MuseumError for an empty museum and
    BaseModelError for one of another base.
    """
    museum.check_over(base.fingerprint)
    if not museum.exhibits:
        raise MuseumError("This museum is empty, so there is nothing to report. Teach it something first.")
    for exhibit in museum.exhibits:
        if exhibit.thumbnail:
            from_thumbnail(exhibit.thumbnail)  # a broken one is refused before the long work
    count, prompts = len(museum.exhibits), everyday_prompts(base.family.captions, looks.everyday)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if report:
            report(done, total)

    compare = Comparing(looks.sampling, latent_shape, tick)
    ends = [museum.learned_with(place) + 1 for place in range(count)]
    total = sum(compare.ticks(looks.pictures, same=end == count) for end in ends)
    total += compare.ticks(len(prompts), same=False)
    now = State(base, museum)
    exhibits = []
    for exhibit, end in zip(museum.exhibits, ends, strict=True):
        then = now if end == count else State(base, replace(museum, exhibits=museum.exhibits[:end]))
        exhibits.append(compare(then, now, [prompt_of(exhibit)] * looks.pictures))
    everyday = compare(State(base, Museum(museum.base)), now, prompts)
    overlap = overlap_matrix(museum) if count <= OVERLAPS_UP_TO else None
    return Report(museum, tuple(exhibits), everyday, overlap)


def prompt_of(exhibit: Exhibit) -> str:
    """What the exhibit is asked for with: the prompt that it was learned with, or its kind's own."""
    if mentions(exhibit.prompt, exhibit.word):
        return exhibit.prompt
    return TEMPLATES[exhibit.kind].replace("{word}", exhibit.word)


def everyday_prompts(captions: Sequence[str], count: int) -> list[str]:
    """`count` of the base's captions, spread evenly over them, without the empty one."""
    known = [caption for caption in captions if caption]
    count = min(count, len(known))
    return [known[number * len(known) // count] for number in range(count)]
