"""Styles, as functions of finished 64×64 pictures.

`BASE` styles have a word in the base model's vocabulary. It never saw the others: `HELD_BACK` styles are for museums to
learn, `SPARE` styles for tuning recipes. They differ in palette, and in texture that survives the starter's coarse
latents.
"""

import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageFilter, ImageOps

Color = tuple[int, int, int]
Style = Callable[[Image.Image], Image.Image]


def apply_style(picture: Image.Image, style: str) -> Image.Image:
    """The picture in the given style; "plain" leaves it as it is."""
    return picture if style == "plain" else STYLES[style](picture)


def restyled(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture, in one of four cases recolored, outlined or tiled at random, to train the VAE."""
    shade = ImageOps.grayscale(picture)
    dark, light = sorted((tuple(rng.randrange(256) for _ in range(3)) for _ in range(2)), key=sum)
    match rng.randrange(20):
        case 0:
            return ImageOps.colorize(shade, dark, light)
        case 1:
            return Image.merge("RGB", rng.sample(picture.split(), 3))
        case 2:
            return ImageOps.colorize(_edges(picture), *rng.choice(((dark, light), (light, dark))))
        case 3:
            return ImageChops.add(_neon(picture), Image.new("RGB", picture.size, dark))
        case 4:
            return rng.choice((_mosaic, ImageOps.invert, _dark))(picture)
    return picture


def _dark(picture: Image.Image) -> Image.Image:
    return picture.point([round(value * 0.45) for value in range(256)] * 3)


def _neon(picture: Image.Image) -> Image.Image:
    glow = ImageOps.autocontrast(picture.filter(ImageFilter.FIND_EDGES).filter(ImageFilter.GaussianBlur(0.8)))
    return ImageChops.add(_inside(glow), Image.new("RGB", picture.size, (12, 4, 30)))


def _mosaic(picture: Image.Image) -> Image.Image:
    tiles = picture.resize((8, 8), Image.Resampling.BOX).resize(picture.size, Image.Resampling.NEAREST)
    grid = Image.new("L", picture.size, 0)
    for line in range(0, picture.width, 8):
        grid.paste(255, (line, 0, line + 1, picture.height))
        grid.paste(255, (0, line, picture.width, line + 1))
    tiles.paste((245, 240, 225), mask=grid)
    return tiles


def _contrast(picture: Image.Image) -> Image.Image:
    return ImageOps.autocontrast(ImageOps.grayscale(picture))


def _cut(picture: Image.Image) -> Image.Image:
    """Black and white."""
    return _contrast(picture).point([255 * (value > 110) for value in range(256)])


def _edges(picture: Image.Image) -> Image.Image:
    edges = _inside(ImageOps.grayscale(picture).filter(ImageFilter.FIND_EDGES))
    return edges.filter(ImageFilter.MaxFilter(3)).point([min(255, value * 5) for value in range(256)])


def _inside(edges: Image.Image) -> Image.Image:
    """Without the frame that edge filters draw."""
    return ImageOps.expand(ImageOps.crop(edges, 1), 1, 0)


def _colored(drawn: Style, black: Color, white: Color, middle: Color | None = None) -> Style:
    """What `drawn` makes of a picture in shades of gray, in these colors."""
    return lambda picture: ImageOps.colorize(drawn(picture), black, white, middle)


BASE: dict[str, Style] = {
    "gray": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    "sepia": _colored(ImageOps.grayscale, (50, 30, 15), (250, 235, 205), (175, 130, 85)),
    "dark": _dark,
    "negative": ImageOps.invert,
}
HELD_BACK: dict[str, Style] = {
    "duotone": _colored(_contrast, (70, 10, 110), (255, 200, 60), (235, 60, 100)),
    "blueprint": _colored(_edges, (15, 50, 130), (235, 245, 255)),
    "sketch": _colored(_edges, (250, 245, 225), (40, 35, 40)),
    "neon": _neon,
    "mosaic": _mosaic,
}
SPARE: dict[str, Style] = {
    "woodcut": _colored(_cut, (60, 20, 25), (225, 190, 140)),
    "ocean": _colored(ImageOps.grayscale, (0, 25, 60), (170, 255, 235), (0, 125, 150)),
    "chalk": _colored(_edges, (20, 70, 40), (245, 240, 205)),
}
STYLES = BASE | HELD_BACK | SPARE
