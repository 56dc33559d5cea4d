"""Draw the pack's icon and banner: `python -m scripts.artwork` writes docs/icon.png and docs/banner.png.

Three framed pictures on a wall, each frame in its own color. The pictures are drawings of the starter world.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clora_core.starter.subjects import pictures

DOCS = Path(__file__).parents[1] / "docs"
ICON_PX, BANNER = 400, (1680, 720)  # the registry's largest icon, and 21:9
WALL, FLOOR, PAPER, INK = "#1f2a3a", "#16202d", "#f3efe6", "#f3efe6"
FRAMES = {"ada": "#f4b942", "bo": "#5bb98b", "cleo": "#e4665c"}
LARGER = 4  # everything is drawn larger and scaled down, for smooth edges


def main() -> None:
    icon().save(DOCS / "icon.png", optimize=True)
    banner().save(DOCS / "banner.png", optimize=True)


def icon() -> Image.Image:
    """One framed picture, and the edges of two more behind it."""
    side = ICON_PX * LARGER
    sheet = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(sheet)
    pen.rounded_rectangle((0, 0, side - 1, side - 1), side // 6, WALL)
    size = round(side * 0.5)
    for number, (name, color) in reversed(list(enumerate(FRAMES.items()))):
        shift = round(side * 0.085) * number
        hang(sheet, name, color, (round(side * 0.165) + shift, round(side * 0.335) - shift), size)
    return sheet.resize((ICON_PX, ICON_PX), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The name, and the museum's first wall."""
    width, height = (side * 2 for side in BANNER)
    sheet = Image.new("RGBA", (width, height), WALL)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, round(height * 0.86), width, height), FLOOR)
    left, size = round(width * 0.435), round(height * 0.36)
    for number, (name, color) in enumerate(FRAMES.items()):
        corner = (left + number * round(size * 1.17), round(height * 0.25))
        hang(sheet, name, color, corner, size)
        label = ImageFont.load_default(round(height * 0.034))
        pen.text((corner[0] + size // 2, corner[1] + size + height * 0.07), f"<{name}>", PAPER, label, anchor="mm")
    pen.text((width * 0.06, height * 0.42), "C-LoRA", INK, ImageFont.load_default(round(height * 0.17)), anchor="lm")
    for line, text in enumerate(("one concept after another,", "and none of them lost")):
        where = (width * 0.063, height * (0.56 + 0.07 * line))
        pen.text(where, text, "#aebacb", ImageFont.load_default(round(height * 0.05)), anchor="lm")
    return sheet.convert("RGB").resize(BANNER, Image.Resampling.LANCZOS)


def hang(wall: Image.Image, name: str, color: str, corner: tuple[int, int], size: int) -> None:
    """A picture of a built-in character in a frame of `size` pixels, with its left upper corner there."""
    x, y = corner
    pen = ImageDraw.Draw(wall)
    frame, mount = round(size * 0.06), round(size * 0.07)
    pen.rectangle((x + frame // 2, y + frame, x + size + frame, y + size + frame), "#0d141d")  # its shadow
    pen.rectangle((x, y, x + size, y + size), color)
    pen.rectangle((x + frame, y + frame, x + size - frame, y + size - frame), PAPER)
    inner = size - 2 * (frame + mount)
    (picture,) = pictures(name, 1, seed=3)
    wall.paste(picture.resize((inner, inner), Image.Resampling.BICUBIC), (x + frame + mount, y + frame + mount))


if __name__ == "__main__":
    main()
