"""Draw a `Scene` of the starter world: 64×64 pixels, painted at three times the size and reduced."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures import as_floats, to_bytes
from .styles import apply_style
from .world import COLORS, PLACES, SHAPES, Scene

SIZE_PX = 64
SCALE = 3

HAIR = {
    "black": (35, 30, 35),
    "brown": (120, 70, 35),
    "yellow": (245, 215, 90),
    "red": (200, 60, 30),
    "white": (235, 235, 240),
    "blue": (60, 110, 225),
}
SKIN = {
    "pale": (250, 215, 185),
    "tan": (215, 160, 110),
    "brown": (125, 80, 50),
    "green": (130, 200, 100),
    "blue": (120, 180, 235),
    "purple": (180, 130, 210),
    "gray": (165, 170, 175),
    "orange": (245, 160, 85),
}
IRIS = {"black": (25, 25, 30), "green": (30, 150, 60), "red": (215, 40, 40), "yellow": (235, 190, 30)}
FACE = {"round": (15, 15), "square": (14, 15), "tall": (12, 17), "wide": (18, 13)}  # half width, half height
INK = (30, 25, 30)

Color = tuple[int, int, int]


def draw(scene: Scene) -> Image.Image:
    """RGB, 64×64. The same scene is always drawn the same way."""
    rng = random.Random(scene.seed)
    canvas = Image.new("RGB", (SIZE_PX * SCALE, SIZE_PX * SCALE))
    attributes = scene.attributes
    _background(Brush(canvas), attributes["background"], rng)
    zoom = rng.uniform(0.98, 1.02)
    brush = Brush(canvas, x=32 + rng.uniform(-0.7, 0.7), y=35 + rng.uniform(-0.7, 0.7), zoom=zoom)
    if "kind" in attributes:
        _portrait(brush, attributes)
    else:
        _thing(brush, attributes["thing"], COLORS[attributes["color"]])
    small = canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
    return apply_style(small, scene.style)


def drawings(scenes: Iterable[Scene]) -> Tensor:
    """The pictures of all scenes, (n, 3, 64, 64) in [-1, 1]."""
    return as_floats(torch.stack([to_bytes(draw(scene)) for scene in scenes]))


@dataclass(frozen=True)
class Brush:
    """Paints in pixels of the finished picture, around a moved and zoomed origin."""

    canvas: Image.Image
    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, *, line: float = 0) -> None:
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        pen = ImageDraw.Draw(self.canvas)
        if line:
            pen.ellipse(box, outline=color, width=round(line * SCALE * self.zoom))
        else:
            pen.ellipse(box, fill=color)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, *, corner: float = 0) -> None:
        box = self._points([(left, top), (right, bottom)])
        ImageDraw.Draw(self.canvas).rounded_rectangle(box, radius=corner * SCALE, fill=color)

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        ImageDraw.Draw(self.canvas).polygon(self._points(points), fill=color)

    def arc(self, x: float, y: float, rx: float, ry: float, start: int, end: int, color: Color, width: float) -> None:
        box = self._points([(x - rx, y - ry), (x + rx, y + ry)])
        ImageDraw.Draw(self.canvas).arc(box, start, end, fill=color, width=round(width * SCALE * self.zoom))

    def _points(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((self.x + x * self.zoom) * SCALE, (self.y + y * self.zoom) * SCALE) for x, y in points]


def _background(brush: Brush, background: str, rng: random.Random) -> None:
    if background not in PLACES:
        shade = rng.uniform(0.9, 1.05)
        brush.box(0, 0, 64, 64, _shaded(COLORS[background], shade))
    elif background == "beach":
        brush.box(0, 0, 64, 30, (150, 215, 250))
        brush.box(0, 30, 64, 46, (40, 130, 200))
        brush.box(0, 46, 64, 64, (245, 220, 150))
        brush.ellipse(rng.choice((8, 56)), 9, 5, 5, (255, 235, 90))
    elif background == "forest":
        brush.box(0, 0, 64, 64, (165, 215, 235))
        brush.box(0, 48, 64, 64, (75, 140, 60))
        for x in (4, 16, 32, 48, 60):
            top = rng.uniform(8, 18)
            brush.polygon([(x - 10, 50), (x + 10, 50), (x, top)], (25, 95, 50))
    elif background == "city":
        brush.box(0, 0, 64, 64, (180, 185, 200))
        for x in range(0, 64, 13):
            top = rng.uniform(8, 26)
            brush.box(x, top, x + 11, 64, (85, 90, 105))
            for y in range(int(top) + 4, 60, 8):
                brush.box(x + 2, y, x + 4.5, y + 3, (250, 220, 120))
                brush.box(x + 6.5, y, x + 9, y + 3, (250, 220, 120))
    elif background == "night":
        brush.box(0, 0, 64, 64, (20, 20, 60))
        for _ in range(12):
            x, y = rng.uniform(0, 64), rng.uniform(0, 40)
            brush.ellipse(x, y, 0.9, 0.9, (255, 255, 230))
        brush.ellipse(rng.choice((9, 55)), 10, 5.5, 5.5, (250, 245, 200))
    elif background == "snow":
        brush.box(0, 0, 64, 64, (195, 215, 235))
        brush.ellipse(12, 62, 34, 18, (250, 250, 255))
        brush.ellipse(54, 64, 34, 16, (240, 245, 252))


def _portrait(brush: Brush, a: Mapping[str, str]) -> None:
    skin, hair, kind = SKIN[a["skin"]], HAIR[a["hair"]], a["kind"]
    half_width, half_height = FACE[a["face"]]
    if a["hairstyle"] == "long":
        brush.box(-half_width - 4, -12, half_width + 4, 22, hair, corner=7)
    if a["hairstyle"] == "curly":
        for x, y in ((-14, -10), (14, -10), (-17, -1), (17, -1), (-16, 7), (16, 7)):
            brush.ellipse(x * half_width / 15, y, 6.5, 6.5, hair)
    brush.box(-4.5, 10, 4.5, 22, _shaded(skin, 0.85))
    brush.box(-19, 19, 19, 60, COLORS[a["shirt"]], corner=6)
    _ears(brush, kind, skin, half_width, half_height)
    if a["face"] == "square" or kind == "robot":
        brush.box(-half_width, -half_height, half_width, half_height, skin, corner=1 if kind == "robot" else 3)
    else:
        brush.ellipse(0, 0, half_width, half_height, skin)
    _mark(brush, a["mark"], half_width, half_height)
    _hair(brush, a["hairstyle"], hair, half_width, half_height)
    _eyes(brush, a["eyes"], IRIS[a["iris"]], skin)
    _nose(brush, a["nose"])
    _mouth(brush, a["mood"])
    if a["glasses"] == "glasses":
        for side in (-1, 1):
            brush.ellipse(side * 7, -1, 6.3, 6.3, INK, line=1.7)
        brush.box(-1.5, -2, 1.5, -0.5, INK)
    _hat(brush, a["hat"], half_width, half_height)


def _ears(brush: Brush, kind: str, skin: Color, w: float, h: float) -> None:
    inside = _shaded(skin, 0.75)
    for side in (-1, 1):
        if kind == "person":
            brush.ellipse(side * w, 1, 3.2, 4, skin)
        elif kind == "cat":
            brush.polygon([(side * w, -h + 9), (side * w * 0.95, -h - 9), (side * 2, -h + 3)], skin)
            brush.polygon([(side * w * 0.85, -h + 6), (side * w * 0.83, -h - 4), (side * 5, -h + 3)], inside)
        elif kind == "bear":
            brush.ellipse(side * w * 0.85, -h + 2, 6.5, 6.5, skin)
            brush.ellipse(side * w * 0.85, -h + 2, 3.4, 3.4, inside)
        elif kind == "rabbit":
            brush.ellipse(side * w * 0.5, -h - 6, 4.2, 13, skin)
            brush.ellipse(side * w * 0.5, -h - 6, 2.0, 10, inside)
        elif kind == "robot":
            brush.box(side * (w + 2) - 2.5, -5, side * (w + 2) + 2.5, 6, (90, 95, 105))
            brush.box(side * w * 0.55 - 1, -h - 8, side * w * 0.55 + 1, -h + 2, (90, 95, 105))
            brush.ellipse(side * w * 0.55, -h - 9, 2.8, 2.8, (225, 60, 50))


def _hair(brush: Brush, style: str, color: Color, w: float, h: float) -> None:
    if style == "bald":
        return
    if style == "spiky":
        for step in range(5):
            x = -w + (step + 0.5) * w * 2 / 5
            brush.polygon([(x - w * 0.26, -h + 6), (x + w * 0.26, -h + 6), (x * 1.25, -h - 8)], color)
        brush.box(-w * 0.85, -h + 1, w * 0.85, -h + 7, color, corner=2)
    elif style == "curly":
        for x in (-0.8, -0.4, 0, 0.4, 0.8):
            brush.ellipse(x * w, -h + 2 + abs(x) * 3, 5.5, 5.5, color)
    else:
        brush.ellipse(0, -h + 4, w * 0.95, 6.5, color)
        brush.box(-w - 0.5, -h + 4, -w + 3.5, -h + 14, color, corner=1)
        brush.box(w - 3.5, -h + 4, w + 0.5, -h + 14, color, corner=1)


def _eyes(brush: Brush, eyes: str, iris: Color, skin: Color) -> None:
    for side in (-1, 1):
        x = side * 7
        if eyes == "dots":
            brush.ellipse(x, -1, 2.3, 2.3, iris)
        elif eyes == "tall":
            brush.ellipse(x, -1, 2.4, 5, iris)
        else:
            brush.ellipse(x, -1, 5, 5, (255, 255, 255))
            brush.ellipse(x, -1, 3.1, 3.1, iris)
        if eyes == "sleepy":
            brush.box(x - 5, -6.5, x + 5, -1.2, _shaded(skin, 0.7))


def _nose(brush: Brush, nose: str) -> None:
    if nose == "ball":
        brush.ellipse(0, 4.2, 2.9, 2.9, (225, 50, 50))
    elif nose == "triangle":
        brush.polygon([(-2.8, 6.2), (2.8, 6.2), (0, 0.5)], (235, 140, 30))
    elif nose == "snout":
        brush.ellipse(0, 5.5, 4.8, 3.6, (250, 225, 200))
        brush.ellipse(0, 4.2, 2.4, 1.6, INK)


def _mouth(brush: Brush, mood: str) -> None:
    if mood == "smiling":
        brush.arc(0, 6.5, 5.5, 4.5, 10, 170, (150, 20, 30), 1.8)
    elif mood == "sad":
        brush.arc(0, 13, 5.5, 4.5, 190, 350, (150, 20, 30), 1.8)
    else:
        brush.ellipse(0, 10.3, 2.6, 2.6, (120, 15, 25))


def _mark(brush: Brush, mark: str, w: float, h: float) -> None:
    if mark == "cheeks":
        for side in (-1, 1):
            brush.ellipse(side * (w - 4.5), 6.5, 3.4, 2.8, (240, 90, 120))
    elif mark == "mask":
        brush.box(-w + 1, -5.5, w - 1, 3.5, (50, 45, 60), corner=2)
    elif mark == "beard":
        brush.ellipse(0, h - 4, w * 0.8, 6, (90, 60, 40))
    elif mark == "stripe":
        brush.box(-2, -h + 1, 2, 2, (220, 45, 60))
    elif mark == "patch":
        brush.ellipse(-7, -1, 6.2, 6.8, (110, 80, 60))


def _hat(brush: Brush, hat: str, w: float, h: float) -> None:
    if hat == "crown":
        gold = (250, 205, 40)
        brush.box(-11, -h - 2, 11, -h + 4, gold)
        for x in (-8.2, 0, 8.2):
            brush.polygon([(x - 4, -h - 1), (x + 4, -h - 1), (x, -h - 9)], gold)
    elif hat == "hat":
        brush.box(-w - 4, -h, w + 4, -h + 3.5, (70, 40, 25), corner=1)
        brush.box(-9.5, -h - 11, 9.5, -h + 1, (70, 40, 25), corner=1)
        brush.box(-9.5, -h - 3, 9.5, -h, (200, 40, 40))
    elif hat == "cap":
        brush.ellipse(0, -h + 3, w * 0.9, 8.5, (40, 80, 190))
        brush.box(-w * 0.9, -h + 2.5, w + 6, -h + 6, (30, 60, 150), corner=1)


def _thing(brush: Brush, thing: str, color: Color) -> None:
    dark = _shaded(color, 0.65)
    if thing in SHAPES:
        _shape(brush, thing, color)
    elif thing == "house":
        brush.box(-13, -4, 13, 16, color)
        brush.polygon([(-17, -4), (17, -4), (0, -19)], dark)
        brush.box(-4, 4, 4, 16, (80, 50, 35))
    elif thing == "tree":
        brush.box(-3, 2, 3, 20, (105, 70, 40))
        brush.ellipse(0, -6, 15, 13, color)
    elif thing == "boat":
        brush.polygon([(-18, 6), (18, 6), (11, 16), (-11, 16)], dark)
        brush.box(-1, -18, 1, 6, (80, 55, 40))
        brush.polygon([(2, -18), (2, 3), (15, 3)], color)
    elif thing == "mountain":
        brush.polygon([(-24, 18), (24, 18), (0, -19)], color)
        brush.polygon([(-7.5, -7.5), (7.5, -7.5), (0, -19)], (250, 250, 250))
    elif thing == "flower":
        brush.box(-1.5, 0, 1.5, 20, (40, 130, 60))
        for x, y in ((0, -15), (8, -9), (5, 0), (-5, 0), (-8, -9)):
            brush.ellipse(x, y, 6, 6, color)
        brush.ellipse(0, -7, 4.5, 4.5, (250, 220, 80) if color != COLORS["yellow"] else (120, 70, 35))
    elif thing == "car":
        brush.box(-20, 0, 20, 12, color, corner=3)
        brush.box(-12, -9, 11, 2, color, corner=4)
        brush.box(-9, -6, 8, 0, (190, 225, 245))
        for x in (-11, 11):
            brush.ellipse(x, 12, 5.5, 5.5, INK)


def _shape(brush: Brush, shape: str, color: Color) -> None:
    if shape == "circle":
        brush.ellipse(0, -2, 15, 15, color)
    elif shape == "square":
        brush.box(-14, -16, 14, 12, color)
    elif shape == "triangle":
        brush.polygon([(-17, 12), (17, 12), (0, -18)], color)
    elif shape == "ring":
        brush.ellipse(0, -2, 16, 16, color, line=6)
    elif shape == "star":
        points = [(0, -19), (5, -7), (18, -6), (8, 3), (11, 16), (0, 9), (-11, 16), (-8, 3), (-18, -6), (-5, -7)]
        brush.polygon([(float(x), float(y)) for x, y in points], color)
    elif shape == "heart":
        brush.ellipse(-7.5, -8, 8.6, 8.6, color)
        brush.ellipse(7.5, -8, 8.6, 8.6, color)
        brush.polygon([(-15.4, -4.5), (15.4, -4.5), (0, 15)], color)


def _shaded(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue
