"""Make a report: every exhibit right after it was learned and now, and plain prompts before and after the museum."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from ..errors import MuseumError, RecipeError
from ..model.base import Base
from ..model.concept import TEMPLATES, mentions
from ..model.sampling import Sampling
from ..museum.museum import Exhibit, Museum, complete_at
from ..museum.overlap import overlap_matrix, size
from ..pictures import from_thumbnail
from .comparing import Compared, Comparing, State

OVERLAPS_UP_TO = 32  # exhibits; every pair is compared weight by weight
AT_ONCE = 4  # pictures


@dataclass(frozen=True)
class ReportSettings:
    """The size of a report. The same settings and museum make the same report.

    pictures: per exhibit. everyday: the number of prompts without a learned word, one picture each.
    """

    pictures: int = 4
    everyday: int = 8
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.everyday < 1:
            raise RecipeError(
                "A report needs at least 1 picture per exhibit and 1 everyday prompt, not "
                f"{self.pictures} and {self.everyday}."
            )


@dataclass(frozen=True, eq=False)
class Report:
    """The results. exhibits: in the museum's order. overlap: (exhibits, exhibits), None if there are too many.

    `now` is the whole museum. An exhibit's `then` is the museum up to it, including concepts that were learned together
    with it; an everyday prompt's `then` is the base model.
    """

    museum: Museum
    exhibits: tuple[Compared, ...]
    everyday: Compared
    overlap: Tensor | None

    @property
    def moved(self) -> list[float]:
        """The mean displacement of each exhibit's predictions since it was learned, caused by later exhibits."""
        return [compared.moved.mean().item() for compared in self.exhibits]

    @property
    def damage(self) -> float:
        """The mean displacement of the predictions for everyday prompts from the base model's."""
        return self.everyday.moved.mean().item()

    @property
    def first_pictures(self) -> list[Image.Image | None]:
        """The thumbnail of each exhibit, or None."""
        return [from_thumbnail(e.thumbnail) if e.thumbnail else None for e in self.museum.exhibits]

    def numbers(self) -> dict[str, object]:
        """All measurements as JSON values."""
        exhibits = [
            {"word": exhibit.word, "prompt": compared.prompts[0], "norm": size(exhibit), "moved": moved}
            for exhibit, compared, moved in zip(self.museum.exhibits, self.exhibits, self.moved, strict=True)
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


def make_report(
    base: Base,
    museum: Museum,
    settings: ReportSettings,
    *,
    latent_shape: tuple[int, ...],
    report: Callable[[int, int], None] | None = None,
) -> Report:
    """Sample and measure a whole museum. latent_shape: (channels, h', w') of the pictures.

    `report(done, of)` is called after every step and may raise to stop. Raises MuseumError for an empty museum and
    BaseModelError for a museum of another base.
    """
    museum.check_over(base.fingerprint)
    if not museum.exhibits:
        raise MuseumError("This museum is empty, so there is nothing to report. Learn a concept first.")
    for exhibit in museum.exhibits:
        if exhibit.thumbnail:
            from_thumbnail(exhibit.thumbnail)  # raises for a broken thumbnail before the long work
    count, prompts = len(museum.exhibits), everyday_prompts(base.family.captions, settings.everyday)
    steps = itertools.count(1)

    def tick() -> None:
        if report:
            report(next(steps), total)

    compare = Comparing(replace(settings.sampling, batch_size=AT_ONCE), latent_shape, tick)
    ends = [complete_at(museum.exhibits, place) for place in range(count)]
    total = sum(compare.ticks(settings.pictures, same=end == count) for end in ends)
    total += compare.ticks(len(prompts), same=False)
    now = State(base, museum)
    exhibits = []
    for exhibit, end in zip(museum.exhibits, ends, strict=True):
        then = now if end == count else State(base, replace(museum, exhibits=museum.exhibits[:end]))
        exhibits.append(compare(then, now, [prompt_of(exhibit)] * settings.pictures))
    everyday = compare(State(base, Museum(museum.base)), now, prompts)
    overlap = overlap_matrix(museum) if count <= OVERLAPS_UP_TO else None
    return Report(museum, tuple(exhibits), everyday, overlap)


def prompt_of(exhibit: Exhibit) -> str:
    """The prompt that the exhibit was learned with if it contains the word, else the template of its kind."""
    if mentions(exhibit.prompt, exhibit.word):
        return exhibit.prompt
    return TEMPLATES[exhibit.kind].replace("{word}", exhibit.word)


def everyday_prompts(captions: Sequence[str], count: int) -> list[str]:
    """At most `count` of the base's captions, evenly spread, without the empty one."""
    captions = [caption for caption in captions if caption]
    count = min(count, len(captions))
    return [captions[number * len(captions) // count] for number in range(count)]
