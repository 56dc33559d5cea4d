"""A report as one self-contained HTML file: embedded pictures, light and dark mode, no script, no network."""

import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..museum.museum import TOGETHER, Exhibit
from ..pictures import as_uri
from ..texts import counted, printable
from .comparing import Compared
from .review import Report

STYLE = Path(__file__).with_name("page.css")
NO_SCRIPT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def as_page(report: Report, *, title: str = "Museum report") -> str:
    """The HTML of the page. Words and prompts from the museum are escaped."""
    sections = [_head(report, title), _exhibits(report), _overlap(report), _everyday(report), _explained()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_SCRIPT}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _head(report: Report, title: str) -> str:
    count = len(report.exhibits)
    facts = [
        ("base", escape(str(report.museum.base))),
        ("exhibits", str(count)),
        ("moved since learned, mean", f"{sum(report.moved) / count:.2f}"),
        ("everyday prompts moved, mean", f"{report.damage:.2f}"),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<header><h1>{escape(title)}</h1><dl>{listed}</dl></header>"


def _exhibits(report: Report) -> str:
    entries = zip(report.museum.exhibits, report.exhibits, report.moved, report.first_pictures, strict=True)
    articles = "\n".join(_exhibit(*entry) for entry in entries)
    return (
        "<section><h2>Exhibits</h2><p class='faint'>Each prompt is sampled twice with the same noise: with the museum "
        "as it was when the exhibit was learned, and with the whole museum.</p>\n" + articles + "</section>"
    )


def _exhibit(exhibit: Exhibit, compared: Compared, moved: float, first: Image.Image | None) -> str:
    recipe = exhibit.recipe
    facts = [f"“{compared.prompts[0]}”", exhibit.kind, recipe.method, f"rank {exhibit.rank}", f"{recipe.steps} steps"]
    facts += [f"strength {exhibit.strength:g}"] if exhibit.strength != 1 else []
    facts += [_fact(name, value) for name, value in exhibit.facts.items() if name != TOGETHER]
    columns = [_figure([first], "first picture") if first else ""]
    columns += [_figure(compared.then, "when it was learned")]
    columns += [_figure(compared.now, "now")]
    return (
        f'<article class="exhibit"><h3>{escape(exhibit.word)}</h3>'
        f'<div class="faint">{escape(" · ".join(facts))}</div>'
        f'<div class="pictures">{"".join(columns)}</div>{_bar(moved, "moved since it was learned")}</article>'
    )


def _overlap(report: Report) -> str:
    if report.overlap is None:
        message = f"Not measured: {len(report.exhibits)} exhibits are too many to compare every pair."
        return f"<section><h2>Overlap</h2><p>{message}</p></section>"
    words = [f"<th>{escape(word)}</th>" for word in report.museum.words]
    rows = []
    for row, values in enumerate(report.overlap.tolist()):
        cells = [
            '<td class="own">1.00</td>' if row == column else f'<td style="--share: {value:.3f}">{value:.2f}</td>'
            for column, value in enumerate(values)
        ]
        rows.append(f"<tr>{words[row]}{''.join(cells)}</tr>")
    return (
        "<section><h2>Overlap</h2><p class='faint'>0: no weight is changed by both exhibits. 1: the same weights, "
        f"equally.</p><div class='scroll'><table><tr><th></th>{''.join(words)}</tr>\n{chr(10).join(rows)}"
        "</table></div></section>"
    )


def _everyday(report: Report) -> str:
    everyday = report.everyday
    prompts = [
        f"<div>{_figure([then, now], f'“{prompt}”')}{_bar(moved, 'moved')}</div>"
        for prompt, then, now, moved in zip(
            everyday.prompts, everyday.then, everyday.now, everyday.moved.tolist(), strict=True
        )
    ]
    return (
        "<section><h2>Everyday prompts</h2><p class='faint'>Prompts without any of the museum's words. Left: the base "
        f"model. Right: the museum, with the same noise.</p><div class='pictures'>{''.join(prompts)}</div></section>"
    )


def _explained() -> str:
    return (
        "<section><h2>How to read it</h2><p><b>Moved</b> is ‖now - then‖ / ‖then - empty‖ over the model's predictions "
        "for the same noisy pictures at four noise levels; empty is the prediction for the empty prompt. 0 means "
        "unchanged. 1 means as far off as with an empty prompt. It measures change, not "
        "quality: look at the pictures. The exhibit that was learned last cannot have moved.</p><p><b>Overlap</b> is "
        "the cosine of |Δ| of two exhibits over all entries of all projections, a normalized form of C-LoRA's penalty."
        "</p></section>"
    )


def _figure(pictures: Sequence[Image.Image], caption: str) -> str:
    images = "".join(_image(picture) for picture in pictures)
    return f'<figure><div class="row">{images}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _image(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0)
    small = ' class="pixels"' if max(picture.size) <= 64 else ""
    uri = as_uri(buffer.getvalue())
    return f'<img{small} alt="" width="{picture.width}" height="{picture.height}" src="{uri}">'


def _bar(moved: float, label: str) -> str:
    return f'<div class="bar"><span style="--share: {min(moved, 1):.0%}"></span>{moved:.2f} {label}</div>'


def escape(text: str) -> str:
    """The text as HTML, with what could mislead a reader escaped as in a terminal."""
    return html.escape(printable(text))


def _fact(name: str, value: object) -> str:
    match name, value:
        case "pictures", int():
            return counted(value, "picture")
        case "date", str():
            return value[:16].replace("T", " ")
    return f"{name} {_short(value)}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
