"""Rebuild the emoji pictures of `bench classification`: one picture of each emoji by each of eleven designers.

    pip install resvg-py
    python benchmarks/emoji_pictures.py --out emoji

Packages of the npm registry are downloaded into `--downloads` and checked against their hashes there; nothing of them
is in this repository. What is written, in the layout that `bench classification` and `classify` read:

    new/train/<class>/<designer>.png     200 classes, by the designers that are trained on
    new/test/<class>/<designer>.png      the same classes by three designers that no training sees for them
    known/train/<class>/<designer>.png   all other classes, for pretraining
"""

import argparse
import base64
import hashlib
import io
import json
import re
import tarfile
import unicodedata
import urllib.request
from pathlib import Path

import resvg_py
import torch
from tqdm import tqdm

from clora_core.seeds import seeded

REGISTRY = "https://registry.npmjs.org"
SCOPE = "@iconify-json"
VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "emojione-monotone": "1.2.1",
}
TEST = ("noto-v1", "openmoji", "emojione-v1")
LEAST_DESIGNERS = 8
NEW_CLASSES = 200
SIDE_PX = 64
COLORED = 0xFE0F  # asks for a colored picture
TONES = range(0x1F3FB, 0x1F400)
FLAGS = range(0x1F1E6, 0x1F200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--downloads", type=Path, default=Path("downloads"), help="folder for the packages")
    arguments = parser.parse_args()
    drawings = downloaded_drawings(arguments.downloads)
    classes = common(drawings)
    new = new_classes(classes, drawings)
    for code in tqdm(classes, desc="drawing"):
        for designer, pictures in drawings.items():
            if code not in pictures:
                continue
            part = "known/train" if code not in new else "new/test" if designer in TEST else "new/train"
            folder = arguments.out / part / code
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{designer}.png").write_bytes(rendered(pictures[code]))
    print(f"{len(classes)} classes, {len(new)} of them new")


def downloaded_drawings(folder: Path) -> dict[str, dict[str, str]]:
    """`read_sets` of all packages, kept in the folder."""
    packages = VERSIONS.items()
    return read_sets({name: download(f"{SCOPE}/{name}", version, folder) for name, version in packages})


def download(package: str, version: str, folder: Path) -> bytes:
    """The package's archive, from the folder or the registry, once its hash is the registry's."""
    folder.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(f"{REGISTRY}/{package}/{version}") as answer:
        described = json.load(answer)["dist"]
    path = folder / f"{package.rpartition('/')[2]}-{version}.tgz"
    if not path.exists():
        with urllib.request.urlopen(described["tarball"]) as answer:
            path.write_bytes(answer.read())
    content = path.read_bytes()
    if "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode() != described["integrity"]:
        raise SystemExit(f"{path} is not the registry's file. Delete it and start again.")
    return content


def read_sets(archives: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """designer → code point of an emoji, such as "1f600" → its drawing, an SVG.

    Some packages give code points, the others names: those of Unicode, or those of the packages with code points.
    """
    icons, codes = {}, {}
    for designer, archive in archives.items():
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            icons[designer] = json.load(files.extractfile("package/icons.json"))  # type: ignore[arg-type]
            codes[designer] = json.load(files.extractfile("package/chars.json"))  # type: ignore[arg-type]
    named = {letters(unicodedata.name(chr(point), "")): f"{point:x}" for point in range(0x2000, 0x20000)}
    for chars in codes.values():
        named |= {letters(name): code for code, name in chars.items()}
    drawings: dict[str, dict[str, str]] = {}
    for designer, package in icons.items():
        pairs = codes[designer].items() or [(named.get(letters(name), ""), name) for name in package["icons"]]
        drawings_by_code = {
            plain(code): package["icons"][name] for code, name in pairs if code and name in package["icons"]
        }
        drawings[designer] = {code: drawing(icon, package) for code, icon in drawings_by_code.items() if code}
    return drawings


def letters(name: str) -> str:
    """A name without blanks and dashes, in small letters."""
    return re.sub("[^a-z0-9]", "", name.lower())


def drawing(icon: dict, package: dict) -> str:
    """A square SVG of one icon."""
    width, height = (icon.get(side, package.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'


def plain(code: str) -> str:
    """The code point of an emoji that is a single one, not counting what asks for color; "" for the others.

    So there are no skin tones, no families, no flags, no letters and no digits.
    """
    points = [point for part in code.split("-") if (point := int(part, 16)) != COLORED]
    ordinary = len(points) == 1 and points[0] > 0x2000 and points[0] not in TONES and points[0] not in FLAGS
    return f"{points[0]:x}" if ordinary else ""


def common(drawings: dict[str, dict[str, str]]) -> list[str]:
    """The emoji that at least eight designers drew."""
    codes = sorted({code for pictures in drawings.values() for code in pictures})
    return [code for code in codes if sum(code in p for p in drawings.values()) >= LEAST_DESIGNERS]


def new_classes(classes: list[str], drawings: dict[str, dict[str, str]]) -> set[str]:
    """The classes that no pretraining sees: drawn at random from those by all three test designers and seven others."""
    able = []
    for code in classes:
        designers = {name for name, pictures in drawings.items() if code in pictures}
        if designers.issuperset(TEST) and len(designers) >= len(TEST) + 7:
            able.append(code)
    order = torch.randperm(len(able), generator=seeded("new emoji"))
    return {able[place] for place in order[:NEW_CLASSES]}


def rendered(svg: str) -> bytes:
    """A PNG on white."""
    drawing = re.sub(r"currentColor", "#000", svg)
    return bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=SIDE_PX, height=SIDE_PX, background="white"))


if __name__ == "__main__":
    main()
