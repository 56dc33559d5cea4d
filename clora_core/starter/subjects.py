"""Built-in subjects to learn: identities that no caption can name, and styles that the base has never seen."""

import random
from collections.abc import Mapping
from itertools import permutations

from PIL import Image

from ..model.concept import TEMPLATES
from .styles import HELD_BACK, SPARE
from .world import IDENTITY, SHAPES, THINGS, Scene, content, imagine, imagine_portrait


def _named(traits: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Each name's traits by the names that they have in `IDENTITY`."""
    return {name: dict(zip(IDENTITY, values.split(), strict=True)) for name, values in traits.items()}


# Ten that are easy to confuse: each shares four or five of its nine traits with at least two others.
IDENTITIES: dict[str, dict[str, str]] = _named(
    {
        #        kind   hairstyle hair  skin   face   eyes   iris   nose     mark
        "ada": "person long   yellow blue   round  big    green  ball     mask",
        "bo": "person  short  black  green  round  sleepy green  ball     none",
        "cleo": "person spiky red    green  round  big    green  none     stripe",
        "dex": "robot  bald   black  orange square big    red    none     cheeks",
        "eve": "robot  curly  white  orange tall   big    yellow ball     cheeks",
        "finn": "robot short  white  orange square dots   yellow snout    cheeks",
        "gus": "bear   long   blue   tan    wide   sleepy black  triangle beard",
        "hana": "bear  long   blue   pale   wide   tall   red    triangle patch",
        "ivo": "bear   spiky  blue   tan    tall   tall   black  triangle stripe",
        "juno": "rabbit curly blue   pale   wide   sleepy red    triangle stripe",
    }
)
# Three more, as easy to confuse, to tune recipes on before they are measured on the ten.
SPARE_IDENTITIES: dict[str, dict[str, str]] = _named(
    {
        "kim": "cat    short  brown  gray   tall   big    yellow snout    patch",
        "lou": "cat    curly  brown  purple tall   sleepy yellow ball     beard",
        "max": "cat    short  red    gray   square tall   green  snout    beard",
    }
)
# Twenty more for a long sequence, each with four or five traits of at least two others. Nothing was tuned on them.
CROWD: dict[str, dict[str, str]] = _named(
    {
        "abe": "person spiky  black  blue   round  big    black  triangle beard",
        "bea": "rabbit spiky  white  blue   round  tall   black  triangle none",
        "cal": "person short  black  pale   round  big    red    triangle stripe",
        "dot": "person spiky  white  blue   wide   tall   black  ball     stripe",
        "eli": "robot  curly  blue   blue   square big    black  triangle mask",
        "fay": "robot  spiky  blue   purple round  big    green  ball     mask",
        "gil": "robot  curly  brown  purple square sleepy black  ball     mask",
        "hal": "rabbit curly  blue   brown  round  sleepy black  triangle mask",
        "ida": "bear   curly  brown  pale   square sleepy green  snout    beard",
        "jed": "robot  spiky  black  orange square sleepy green  snout    beard",
        "kai": "cat    long   black  gray   square sleepy red    snout    beard",
        "lea": "bear   curly  yellow gray   tall   big    green  ball     beard",
        "mia": "robot  short  brown  brown  wide   dots   green  triangle patch",
        "ned": "robot  short  white  brown  tall   sleepy red    triangle mask",
        "ola": "person short  red    brown  wide   tall   yellow triangle none",
        "pam": "person short  red    purple round  big    yellow triangle mask",
        "quin": "rabbit short  white  pale   round  tall   green  none     none",
        "ray": "bear   long   white  pale   round  big    yellow none     none",
        "sue": "bear   curly  white  gray   round  tall   black  none     none",
        "tom": "bear   curly  yellow green  round  tall   yellow none     beard",
    }
)
ALL_IDENTITIES = IDENTITIES | SPARE_IDENTITIES | CROWD
STYLES, SPARE_STYLES = tuple(HELD_BACK), tuple(SPARE)
SUBJECTS = (*IDENTITIES, *STYLES)


def candidates(identity: str) -> dict[str, dict[str, str]]:
    """The identities it is told apart from: the ten, the twenty, or for a spare one the ten and the spare three."""
    groups = (IDENTITIES, CROWD, IDENTITIES | SPARE_IDENTITIES)
    return next(group for group in groups if identity in group)


def pictures(subject: str, count: int, *, seed: int) -> list[Image.Image]:
    """`count` different pictures of a subject, 64×64 RGB. An identity keeps its traits; clothes, mood, place change."""
    from .draw import draw  # not when ComfyUI starts, which lists the subjects

    return [draw(scene) for scene in scenes(subject, count, seed=seed)]


def captions(subject: str, count: int, *, seed: int) -> tuple[str, ...]:
    """The captions of these pictures of a style: "a {word} style picture of a red boat". None for an identity."""
    if subject in ALL_IDENTITIES:
        return ()
    rng = random.Random(f"captions {subject} {seed}")
    return tuple(f"{TEMPLATES['style']} of {content(scene, rng)}" for scene in scenes(subject, count, seed=seed))


def unrelated(identity: str) -> str:
    """Two nouns that have nothing to do with the identity; other ones for each."""
    pairs = list(permutations((*SHAPES, *THINGS), 2))
    random.Random("unrelated").shuffle(pairs)
    return " ".join(pairs[list(ALL_IDENTITIES).index(identity)])


def description(identity: str) -> str:
    """Some traits of the identity that captions can name; other ones for each."""
    traits = ALL_IDENTITIES[identity]
    hair = "no" if traits["hairstyle"] == "bald" else f"{traits['hairstyle']} {traits['hair']}"
    return f"{traits['skin']} {traits['kind']} with {hair} hair"


def scenes(subject: str, count: int, *, seed: int) -> list[Scene]:
    """The scenes of `pictures`."""
    rng = random.Random(f"{subject} {seed}")
    if subject in ALL_IDENTITIES:
        traits = ALL_IDENTITIES[subject]
        return [Scene(imagine_portrait(rng, traits), seed=rng.getrandbits(32)) for _ in range(count)]
    if subject in (*STYLES, *SPARE_STYLES):
        plain = (imagine(rng)[0] for _ in range(count))
        return [Scene(picture.attributes, subject, picture.seed) for picture in plain]
    raise ValueError(f"no built-in subject '{subject}'. Choose one of: {', '.join(SUBJECTS)}")
