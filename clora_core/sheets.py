"""Arrange pictures on one sheet."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .errors import CLoRAError
from .pictures import THUMBNAIL_PX, to_picture

GAP_PX, LABEL_PX, TITLE_PX = 10, 92, 24
ABSENT = "\U0010ffff"  # no font has it
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Fonts for what Pillow's own cannot write, which has ASCII only: of Windows, macOS and Linux.
FONTS = ("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "segoeui.ttf", "Arial Unicode.ttf", "Hiragino Sans GB.ttc")
FONTS += ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "ipagp.ttf", "NanumGothic.ttf")


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Tensor | None]]], titles: Sequence[str], *, columns: int
) -> Image.Image:
    """Rows of a name and one block of pictures (n, 3, h, w) in [-1, 1] per title, or None for an empty block.

    A block shows its first 2 · `columns` pictures, in two lines.
    """
    height, width = next(block for _, blocks in rows for block in blocks if block is not None).shape[-2:]
    block_width, block_height = columns * width, 2 * height
    size = LABEL_PX + len(titles) * (block_width + GAP_PX), TITLE_PX + len(rows) * (block_height + GAP_PX)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), font_for((*titles, *(name for name, _ in rows)), 13)
    for place, title in enumerate(titles):
        pen.text((LABEL_PX + place * (block_width + GAP_PX), 5), title, fill="black", font=font)
    for line, (name, blocks) in enumerate(rows):
        top = TITLE_PX + line * (block_height + GAP_PX)
        pen.text((6, top + block_height // 2 - 8), name, fill="black", font=font)
        for place, block in enumerate(blocks):
            if block is not None:
                left = LABEL_PX + place * (block_width + GAP_PX)
                sheet.paste(grid(block[: 2 * columns], columns=columns), (left, top))
    return sheet


def grid(pictures: Tensor, *, columns: int) -> Image.Image:
    """Pictures (n, 3, h, w) in [-1, 1] in lines of `columns`."""
    count, _, height, width = pictures.shape
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(to_picture(picture), (index % columns * width, index // columns * height))
    return sheet


def thumbnail_sheet(pictures: Sequence[tuple[str, Image.Image]], *, columns: int = 6) -> Image.Image:
    """Pictures of any size in lines of `columns`, each fitted into a square with its name below."""
    lines = -(-len(pictures) // columns)
    cell_width, cell_height = THUMBNAIL_PX + GAP_PX, THUMBNAIL_PX + TITLE_PX
    sheet = Image.new("RGB", (min(columns, len(pictures)) * cell_width + GAP_PX, lines * cell_height + GAP_PX), "white")
    pen, font = ImageDraw.Draw(sheet), font_for([name for name, _ in pictures], 13)
    for index, (name, picture) in enumerate(pictures):
        left, top = GAP_PX + index % columns * cell_width, GAP_PX + index // columns * cell_height
        sheet.paste(ImageOps.pad(picture, (THUMBNAIL_PX, THUMBNAIL_PX), color="white"), (left, top))
        pen.text((left, top + THUMBNAIL_PX + 3), name, fill="black", font=font)
    return sheet


def confusion_sheet(shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A cell for each share between 0 and 1, the darker the larger, with percents; names beside rows, above columns."""
    cell, cut, corner = 22, 40, ("row: its class", "column: taken for")
    font, small = font_for((*rows, *columns), 12), ImageFont.load_default(9)
    label = 8 + round(max(font.getlength(name[:cut]) for name in (*rows, *columns, *corner)))
    sheet = Image.new("RGB", (label + len(columns) * cell, label + len(rows) * cell), "white")
    above = Image.new("RGB", (label, len(columns) * cell), "white")
    for place, name in enumerate(columns):
        ImageDraw.Draw(above).text((4, place * cell + 4), name[:cut], fill="black", font=font)
    sheet.paste(above.transpose(Image.Transpose.ROTATE_90), (label, 0))
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 4), "\n".join(corner), fill="gray", font=font)
    for line, (name, values) in enumerate(zip(rows, shares, strict=True)):
        top = label + line * cell
        pen.text((4, top + 4), name[:cut], fill="black", font=font)
        for place, share in enumerate(values):
            shade, left = round(255 * (1 - share)), label + place * cell
            pen.rectangle((left, top, left + cell - 2, top + cell - 2), fill=(shade, shade, 255 if share else 245))
            if share:
                ink, middle = "white" if share > 0.4 else "black", (left + cell // 2 - 1, top + cell // 2 - 1)
                pen.text(middle, f"{100 * share:.0f}", fill=ink, font=small, anchor="mm")
    return sheet


def font_for(texts: Iterable[str], size: int) -> Font:
    """Pillow's own font, or the first one on this machine that has more of the characters."""
    characters = sorted(set("".join(texts)))

    def drawn(character: str, font: Font) -> bytes:
        picture = Image.new("L", (2 * size, 2 * size))
        ImageDraw.Draw(picture).text((0, 0), character, 255, font=font)
        return picture.tobytes()

    def missing(font: Font) -> int:
        box = drawn(ABSENT, font)
        return sum(drawn(character, font) == box for character in characters)

    best = ImageFont.load_default(size)
    for name in FONTS if missing(best) else ():
        try:
            font = ImageFont.truetype(name, size)
        except OSError:  # it is not installed
            continue
        best = min(best, font, key=missing)
    return best


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture to a file. Raises CLoRAError if that is not possible."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise CLoRAError(f"The picture cannot be written to '{path}': {error}.") from error
