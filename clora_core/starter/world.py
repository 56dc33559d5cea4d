"""The starter world: what can be drawn, and its captions.

A portrait has fourteen attributes. A caption names some of `SAYABLE` and never one of `UNSAYABLE`. So the base model
can draw "a smiling wide green cat with red hair", but has no word for certain eyes or noses, nor for an identity, which
has all these traits together. That is what a new word has to learn.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

COLORS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (250, 210, 60),
    "green": (46, 160, 80),
    "blue": (45, 90, 200),
    "purple": (130, 60, 170),
    "pink": (245, 140, 180),
    "white": (245, 245, 245),
}
PLACES = ("beach", "forest", "city", "night", "snow")

PORTRAIT: dict[str, tuple[str, ...]] = {
    "kind": ("person", "cat", "bear", "rabbit", "robot"),
    "hairstyle": ("bald", "short", "long", "spiky", "curly"),
    "hair": ("black", "brown", "yellow", "red", "white", "blue"),
    "hat": ("none", "crown", "hat", "cap"),
    "glasses": ("none", "glasses"),
    "mood": ("smiling", "sad", "surprised"),
    "shirt": tuple(COLORS),
    "background": (*COLORS, *PLACES),
    "skin": ("pale", "tan", "brown", "green", "blue", "purple", "gray", "orange"),
    "face": ("round", "square", "tall", "wide"),
    "eyes": ("dots", "big", "sleepy", "tall"),
    "iris": ("black", "green", "red", "yellow"),
    "nose": ("none", "ball", "triangle", "snout"),
    "mark": ("none", "cheeks", "mask", "beard", "stripe", "patch"),
}
UNSAYABLE = ("eyes", "iris", "nose")
SAYABLE = {name: values for name, values in PORTRAIT.items() if name not in UNSAYABLE}
CHANGING = ("hat", "glasses", "mood", "shirt", "background")
IDENTITY = tuple(name for name in PORTRAIT if name not in CHANGING)  # the same in every picture of an identity

SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
THINGS = ("house", "tree", "boat", "mountain", "flower", "car")
THING: dict[str, tuple[str, ...]] = {
    "thing": (*SHAPES, *THINGS),
    "color": tuple(COLORS),
    "background": PORTRAIT["background"],
}

BASE_STYLES = ("plain", "gray", "sepia", "dark", "negative")


@dataclass(frozen=True)
class Scene:
    """A picture to draw: its attributes, a style of `styles.py`, and the seed of random details."""

    attributes: Mapping[str, str]
    style: str = "plain"
    seed: int = 0


def imagine(rng: random.Random) -> tuple[Scene, str]:
    """A random scene of the base model's training data, and its caption."""
    attributes = imagine_portrait(rng) if rng.random() < 0.8 else imagine_thing(rng)
    style = "plain" if rng.random() < 0.92 else rng.choice(BASE_STYLES[1:])
    scene = Scene(attributes, style, rng.getrandbits(32))
    return scene, caption(scene, rng)


def imagine_portrait(rng: random.Random, fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Random attributes of a portrait, except `fixed` ones."""
    drawn = {name: rng.choice(values) for name, values in PORTRAIT.items()}
    if rng.random() < 0.4:
        drawn["hat"] = "none"
    if rng.random() < 0.3:
        drawn["glasses"] = "none"
    return drawn | dict(fixed or {})


def imagine_thing(rng: random.Random) -> dict[str, str]:
    """Random attributes of a thing, in another color than its background."""
    thing = {name: rng.choice(values) for name, values in THING.items()}
    while thing["background"] == thing["color"]:
        thing["background"] = rng.choice(THING["background"])
    return thing


def caption(scene: Scene, rng: random.Random) -> str:
    """A random caption of the content and the style."""
    phrase = content(scene, rng)
    opening = rng.choice(("a photo of ", "a photo of ", "a picture of ", ""))
    style = "" if scene.style == "plain" else f" in {scene.style} style"
    return opening + phrase + style


def content(scene: Scene, rng: random.Random) -> str:
    """A random caption of the content: each sayable attribute with some probability, in a fixed order."""
    attributes = scene.attributes
    phrase = _portrait_phrase(attributes, rng) if "kind" in attributes else _thing_phrase(attributes)
    return phrase + (place_phrase(attributes["background"]) if rng.random() < 0.75 else "")


def place_phrase(background: str) -> str:
    """The part of a caption about the background."""
    match background:
        case "beach":
            return " at the beach"
        case "forest" | "city" | "snow":
            return f" in the {background}"
        case "night":
            return " at night"
    return f" on {background}"


def describe(attributes: Mapping[str, str]) -> str:
    """The caption with all sayable attributes."""
    phrase = _thing_phrase(attributes) if "thing" in attributes else _portrait_phrase(attributes, None)
    return "a photo of " + phrase + place_phrase(attributes["background"])


def _thing_phrase(attributes: Mapping[str, str]) -> str:
    return f"a {attributes['color']} {attributes['thing']}"


def _portrait_phrase(attributes: Mapping[str, str], rng: random.Random | None) -> str:
    def say(probability: float) -> bool:
        return rng is None or rng.random() < probability

    def named(name: str, probability: float) -> str:
        return f"{attributes[name]} " if say(probability) else ""

    phrase = f"a {named('mood', 0.5)}{named('face', 0.5)}{named('skin', 0.6)}{attributes['kind']}"
    features = []
    if say(0.65):
        bald = attributes["hairstyle"] == "bald"
        features.append("no hair" if bald else f"{attributes['hairstyle']} {named('hair', 0.85)}hair")
    if attributes["mark"] != "none" and say(0.7):
        features.append("cheeks" if attributes["mark"] == "cheeks" else f"a {attributes['mark']}")
    worn = []
    if attributes["hat"] != "none" and say(0.9):
        worn.append(f"a {attributes['hat']}")
    if attributes["glasses"] != "none" and say(0.9):
        worn.append("glasses")
    if say(0.6):
        worn.append(f"a {attributes['shirt']} shirt")
    return phrase + _joined(" with ", features) + _joined(" wearing ", worn)


def _joined(opening: str, parts: list[str]) -> str:
    return opening + " and ".join(parts) if parts else ""
