"""Draw docs/twenty.jpg: twenty characters when they were learned and at the end, from the contact sheets of two runs.

First run `bench forgetting --subjects crowd --methods preservation c-lora --seeds 0`, which writes the contact sheets
(they are not kept in the repository), then `python -m scripts.twenty`.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clora_core.bench.forgetting import TRACKS, in_order
from clora_core.sheets import GAP_PX, LABEL_PX, TITLE_PX

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "results" / "forgetting"
METHODS = {"preservation": "preservation", "c-lora": "C-LoRA"}
SIDE_PX, EDGE_PX, NAMES_PX = 64, 4, 190
BLOCK_PX = 2 * SIDE_PX + GAP_PX


def main() -> None:
    names = in_order(TRACKS["crowd"], 0)
    sheets = {method: Image.open(RUNS / f"crowd-20x600-{method}-order0-seed0.jpg") for method in METHODS}
    rows = [("real", [first_of(sheets["preservation"], row, 0) for row in range(len(names))])]
    for method, title in METHODS.items():
        learned = [first_of(sheets[method], row, row + 1) for row in range(len(names))]
        rows.append((f"{title}: when learned", learned))
        rows.append(("… after all twenty", [first_of(sheets[method], row, len(names)) for row in range(len(names))]))
    step = SIDE_PX + EDGE_PX
    picture = Image.new("RGB", (NAMES_PX + len(names) * step, TITLE_PX + len(rows) * step), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for column, name in enumerate(names):
        pen.text((NAMES_PX + column * step, 4), name, fill="black", font=font)
    for line, (title, tiles) in enumerate(rows):
        pen.text((6, TITLE_PX + line * step + SIDE_PX // 2 - 10), title, fill="black", font=font)
        for column, tile in enumerate(tiles):
            picture.paste(tile, (NAMES_PX + column * step, TITLE_PX + line * step))
    picture.save(ROOT / "docs" / "twenty.jpg", quality=85)


def first_of(sheet: Image.Image, row: int, block: int) -> Image.Image:
    """The first picture of a block of a contact sheet; block 0 has the real ones, block n those after the nth task."""
    left, top = LABEL_PX + block * BLOCK_PX, TITLE_PX + row * BLOCK_PX
    return sheet.crop((left, top, left + SIDE_PX, top + SIDE_PX))


if __name__ == "__main__":
    main()
