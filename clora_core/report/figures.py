"""The figures of a report. Each is readable on its own: it names the exhibits, the measure and its scale."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageOps

from ..sheets import Font, font_for
from .review import Report

PAPER, INK, FAINT, ACCENT = "#ffffff", "#1c2530", "#6b7683", "#2f6fdb"
EDGE, GAP, LINE, TILE_PX, CELL_PX, BAR_PX = 24, 12, 22, 128, 64, 420
LABEL_PX = 240  # the maximum width of a word or a prompt beside a figure


def figures_of(report: Report) -> dict[str, Image.Image]:
    """All figures by name."""
    return {"exhibits": exhibits_figure(report), "overlap": overlap_figure(report), "moved": moved_figure(report)}


def exhibits_figure(report: Report) -> Image.Image:
    """A row for each exhibit: its first picture, samples from when it was learned, samples from now."""
    count = len(report.exhibits[0].then)
    label = max(_width(word, 16) for word in report.museum.words)
    lefts = [EDGE + min(label, LABEL_PX) + GAP]
    lefts += [lefts[0] + TILE_PX + 3 * GAP]
    lefts += [lefts[1] + count * (TILE_PX + GAP) + 2 * GAP]
    width = max(lefts[2] + count * (TILE_PX + GAP) - GAP, lefts[2] + 2 * TILE_PX) + EDGE
    top = EDGE + 4 * LINE
    sheet, pen = _sheet(width, top + len(report.exhibits) * (TILE_PX + GAP) - GAP + EDGE)
    _heading(pen, "Exhibits", "Each with the same prompt and the same noise, when it was learned and now.")
    for left, title in zip(lefts, ("first picture", "when it was learned", "now"), strict=True):
        _write(pen, (left, top - LINE), title, FAINT, 14)
    firsts = report.first_pictures
    for row, (word, compared) in enumerate(zip(report.museum.words, report.exhibits, strict=True)):
        y = top + row * (TILE_PX + GAP)
        _write(pen, (EDGE, y + TILE_PX // 2), _fitted(word, LABEL_PX, 16), INK, 16, anchor="lm")
        if first := firsts[row]:
            sheet.paste(tile(first), (lefts[0], y))
        else:
            _write(pen, (lefts[0], y + TILE_PX // 2), "not stored", FAINT, 14, anchor="lm")
        for left, pictures in ((lefts[1], compared.then), (lefts[2], compared.now)):
            for column, picture in enumerate(pictures):
                sheet.paste(tile(picture), (left + column * (TILE_PX + GAP), y))
    return sheet


def overlap_figure(report: Report) -> Image.Image:
    """The overlap of every pair of exhibits, or a message if there are too many."""
    if report.overlap is None:
        sheet, pen = _sheet(640, EDGE * 2 + 3 * LINE)
        _heading(pen, "Overlap", f"Not measured: {len(report.exhibits)} exhibits are too many to compare every pair.")
        return sheet
    words = [_fitted(word, LABEL_PX, 15) for word in report.museum.words]
    label = max(_width(word, 15) for word in words)
    left, top = EDGE + label + GAP, EDGE + 3 * LINE + label + GAP
    note = "0: no weight is changed by both. 1: the same weights, equally."
    width = max(left + len(words) * CELL_PX, EDGE + _width(note, 14)) + EDGE
    sheet, pen = _sheet(width, top + len(words) * CELL_PX + EDGE)
    _heading(pen, "Overlap", note)
    for place, word in enumerate(words):
        middle = place * CELL_PX + CELL_PX // 2
        _write(pen, (left - GAP, top + middle), word, INK, 15, anchor="rm")
        upright = _upright(word)
        sheet.paste(upright, (left + middle - upright.width // 2, top - GAP - upright.height))
    for row, values in enumerate(report.overlap.tolist()):
        for column, value in enumerate(values):
            x, y = left + column * CELL_PX, top + row * CELL_PX
            diagonal = row == column
            pen.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), "#e8ebef" if diagonal else _mixed(value))
            color = FAINT if diagonal else PAPER if value > 0.5 else INK
            _write(pen, (x + CELL_PX // 2, y + CELL_PX // 2), f"{value:.2f}", color, 16, anchor="mm")
    return sheet


def moved_figure(report: Report) -> Image.Image:
    """Displacements as bars: of each exhibit since it was learned, and of everyday prompts from the base model."""
    exhibits = list(zip(report.museum.words, report.moved, strict=True))
    everyday = list(zip(report.everyday.prompts, report.everyday.moved.tolist(), strict=True))
    longest = max(1.0, *(value for _, value in (*exhibits, *everyday)))
    rows = len(exhibits) + len(everyday)
    sheet, pen = _sheet(2 * EDGE + LABEL_PX + GAP + BAR_PX + 60, 2 * EDGE + (rows + 6) * LINE + LINE // 2)
    _heading(pen, "How far predictions moved", "0: unchanged. 1: as far off as with an empty prompt (vertical mark).")
    y = EDGE + 3 * LINE
    for title, bars in (("exhibits, since each was learned", exhibits), ("everyday prompts, from the base", everyday)):
        _write(pen, (EDGE, y), title, FAINT, 14)
        y = _bars(pen, bars, longest, y + LINE) + LINE // 2
    return sheet


def tile(picture: Image.Image) -> Image.Image:
    """The center square of a picture. Small pictures are enlarged with visible pixels."""
    resampling = Image.Resampling.NEAREST if min(picture.size) <= TILE_PX else Image.Resampling.LANCZOS
    return ImageOps.fit(picture, (TILE_PX, TILE_PX), resampling)


def _bars(pen: ImageDraw.ImageDraw, bars: Sequence[tuple[str, float]], longest: float, y: int) -> int:
    left = EDGE + LABEL_PX + GAP
    for name, value in bars:
        _write(pen, (left - GAP, y + LINE // 2), _fitted(name, LABEL_PX, 14), INK, 14, anchor="rm")
        end = left + round(BAR_PX * value / longest)
        pen.rectangle((left, y + 4, max(end, left + 1), y + LINE - 4), ACCENT)
        _write(pen, (end + 8, y + LINE // 2), f"{value:.2f}", INK, 14, anchor="lm")
        mark = left + round(BAR_PX / longest)
        pen.line((mark, y, mark, y + LINE), FAINT)
        y += LINE
    return y


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _heading(pen: ImageDraw.ImageDraw, title: str, note: str) -> None:
    _write(pen, (EDGE, EDGE), title, INK, 20)
    _write(pen, (EDGE, EDGE + LINE + 6), note, FAINT, 14)


def _upright(word: str) -> Image.Image:
    """A word that reads from bottom to top."""
    sheet = Image.new("RGB", (_width(word, 15) + 2, LINE), PAPER)
    _write(ImageDraw.Draw(sheet), (0, LINE // 2), word, INK, 15, anchor="lm")
    return sheet.rotate(90, expand=True)


def _mixed(value: float) -> tuple[int, int, int]:
    """From paper at 0 to the accent at 1."""
    share = min(max(value, 0.0), 1.0)
    ends = ((255, 255, 255), (47, 111, 219))
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(*ends, strict=True))
    return red, green, blue


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, ink: str, size: int, anchor: str | None = None
) -> None:
    pen.text(place, text, ink, _font(text, size), anchor=anchor)


def _fitted(text: str, width: int, size: int) -> str:
    """The text in that size, shortened to that width in pixels."""
    if _width(text, size) <= width:
        return text
    while text and _width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


def _width(text: str, size: int) -> int:
    return round(_font(text, size).getlength(text))


def _font(text: str, size: int) -> Font:
    return _font_with("".join(sorted(set(text))), size)


_font_with = lru_cache(64)(font_for)
