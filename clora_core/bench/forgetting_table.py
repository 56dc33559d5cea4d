"""The results of `bench forgetting`: tables with intervals, and the alignment matrices as a picture."""

import math
import statistics
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from .runs import COLUMNS, Run, with_interval

AGAINST = ("kept", "forgetting", "learned", "plasticity", "distance", "base_damage", "processor_seconds")
ZERO = (
    "F_mmd and plain prompts' MMD compare pictures of the same noise, so they are slightly negative where no picture "
    "changed: see textual-inversion."
)
CELL_PX, GAP_PX, TITLE_PX, ACROSS_PX = 22, 18, 20, 960


def tables_of(results: Sequence[Run]) -> str:
    """Markdown: a table for each track, and the differences between its methods and c-lora."""
    parts = []
    for track in dict.fromkeys(result["track"] for result in results):
        own = [result for result in results if result["track"] == track]
        parts.append(f"## {track.capitalize()}, one after another\n\n{table_of(own)}\n\n{ZERO}")
        if compared := compared_with("c-lora", own):
            parts.append(f"### {track.capitalize()}: differences from c-lora\n\n{compared}")
    return "\n\n".join(parts)


def table_of(results: Sequence[Run], titles: Mapping[str, str] = COLUMNS) -> str:
    """The means over the runs of each method, ± half of a 95 % interval; empty where no run has the metric."""
    columns = {name: title for name, title in titles.items() if any(name in result for result in results)}
    lines = ["| | " + " | ".join(columns.values()) + " | runs |", "|---" * (len(columns) + 2) + "|"]
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        found = [[result[name] for result in own if name in result] for name in columns]
        cells = [with_interval(values) if values else "" for values in found]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def compared_with(rival: str, results: Sequence[Run]) -> str:
    """The mean differences between runs of the same seed, and so of the same order, ± half of a 95 % interval."""
    rivals = {result["seed"]: result for result in results if result["method"] == rival}
    lines = ["| | " + " | ".join(COLUMNS[name] for name in AGAINST) + " | pairs |", "|---" * (len(AGAINST) + 2) + "|"]
    for method in dict.fromkeys(result["method"] for result in results if result["method"] != rival):
        pairs = [(run, rivals[run["seed"]]) for run in results if run["method"] == method and run["seed"] in rivals]
        if pairs:
            cells = [with_interval([one[name] - other[name] for one, other in pairs], sign="+") for name in AGAINST]
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {len(pairs)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def matrices_of(results: Sequence[Run]) -> Image.Image:
    """The mean alignment matrix of every method. Row i: after learning concept i; column j: concept j; green is 1."""
    tracks = dict.fromkeys(result["track"] for result in results)
    parts = [_matrices_of_track(track, [r for r in results if r["track"] == track]) for track in tracks]
    picture = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture


def _matrices_of_track(track: str, results: Sequence[Run]) -> Image.Image:
    methods = list(dict.fromkeys(result["method"] for result in results))
    matrices = [_mean_matrix([r for r in results if r["method"] == method]) for method in methods]
    titles, font = [f"{track}: {method}" for method in methods], ImageFont.load_default(12)
    side = max(len(matrix) for matrix in matrices) * CELL_PX
    width = math.ceil(max(side, *map(font.getlength, titles))) + GAP_PX
    height = side + GAP_PX + TITLE_PX
    across = max(1, ACROSS_PX // width)
    picture = Image.new("RGB", (across * width, -(-len(methods) // across) * height), "white")
    pen, small = ImageDraw.Draw(picture), ImageFont.load_default(9)
    for place, (title, matrix) in enumerate(zip(titles, matrices, strict=True)):
        left, top = place % across * width, place // across * height
        pen.text((left, top + 2), title, fill="black", font=font)
        for row, values in enumerate(matrix):
            for column, value in enumerate(values):
                if value is not None:
                    x, y = left + column * CELL_PX, top + TITLE_PX + row * CELL_PX
                    shade = (round(235 - 190 * value), round(90 + 120 * value), round(80 + 30 * value))
                    pen.rectangle((x, y, x + CELL_PX - 2, y + CELL_PX - 2), fill=shade)
                    pen.text((x + 2, y + 5), f"{100 * value:.0f}", fill="white", font=small)
    return picture


def _mean_matrix(results: Sequence[Run]) -> list[list[float | None]]:
    matrices = [result["alignment"] for result in results]
    return [
        [None if cells[0] is None else statistics.fmean(cells) for cells in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]
