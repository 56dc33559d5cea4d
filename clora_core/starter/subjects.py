"""Built-in subjects to learn: identities that no caption can name, and styles that the base has never seen."""

import random

from PIL import Image

from .draw import draw
from .styles import HELD_BACK
from .world import IDENTITY, Picture, imagine, imagine_portrait

# Ten that are easy to take for one another: each shares most of its traits with several others.
IDENTITIES: dict[str, dict[str, str]] = {
    name: dict(zip(IDENTITY, traits.split(), strict=True))
    for name, traits in {
        #        kind   hairstyle hair  skin   face   eyes   iris   nose     mark
        "ada": "person long   yellow blue   round  big    green  ball     mask",
        "bo": "person  short  black  green  wide   sleepy red    triangle none",
        "cleo": "cat   spiky  red    gray   round  tall   yellow none     stripe",
        "dex": "robot  bald   black  orange square big    red    none     patch",
        "eve": "person curly  white  brown  tall   big    yellow ball     cheeks",
        "finn": "bear  short  yellow purple wide   dots   black  snout    mask",
        "gus": "person bald   brown  tan    square sleepy green  ball     beard",
        "hana": "rabbit long  blue   pale   round  tall   red    triangle cheeks",
        "ivo": "person spiky  blue   green  tall   big    red    snout    stripe",
        "juno": "cat   curly  brown  purple wide   sleepy green  triangle patch",
    }.items()
}
STYLES = tuple(HELD_BACK)
SUBJECTS = (*IDENTITIES, *STYLES)


def pictures(subject: str, count: int, *, seed: int) -> list[Image.Image]:
    """`count` different pictures of a subject, 64×64 RGB. An identity keeps its traits; clothes, mood, place change."""
    rng = random.Random(f"{subject} {seed}")
    return [draw(picture) for picture in imagine_subject(subject, count, rng)]


def imagine_subject(subject: str, count: int, rng: random.Random) -> list[Picture]:
    """What is on those pictures."""
    if subject in IDENTITIES:
        traits = IDENTITIES[subject]
        return [Picture(imagine_portrait(rng, traits), seed=rng.getrandbits(32)) for _ in range(count)]
    if subject in STYLES:
        plain = (imagine(rng)[0] for _ in range(count))
        return [Picture(picture.attributes, subject, picture.seed) for picture in plain]
    raise ValueError(f"no built-in subject '{subject}'. Choose one of: {', '.join(SUBJECTS)}")
