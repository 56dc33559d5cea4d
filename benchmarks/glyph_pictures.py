"""Draw the glyphs of `bench classification`: 100 kana and kanji in Debian's Japanese fonts.

    apt install --no-install-recommends fontconfig \\
        fonts-{aoyagi-kouzan-t,aoyagi-soseki,dejima-mincho,dotgothic16,hanazono,horai-umefont,ipaexfont,ipafont} \\
        fonts-{ipamj-mincho,kiloji,konatu,kouzan-mouhitsu,migmix,misaki,mona,monapo,morisawa-bizud-gothic} \\
        fonts-{morisawa-bizud-mincho,motoya-l-cedar,motoya-l-maruberi,mplus,oradano-mincho-gsrr,reggae} \\
        fonts-{sawarabi-gothic,sawarabi-mincho,seto,takao,train,umeplus,umeplus-cl,vlgothic,yozvox-yozfont}
    python benchmarks/glyph_pictures.py --out glyphs

All installed font families that have the characters are used, one file of each; of fonts with the same kanji, one. With
these packages of Debian 12 they are 27. Every third one tests:

    train/<character>/<family>.png        test/<character>/<family>.png
"""

import argparse
import re
import subprocess
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat

CHARACTERS = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれ"
    "一二右雨円王音下火花貝学気九休玉金空月犬見五口校左三山子四糸字耳七車手十出女小上森人水正生青夕石赤千川先早草足村大男"
)
RARE = "鬱"  # fonts that have it have all others
SIDE_PX, MARGIN_PX = 96, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for train/ and test/")
    arguments = parser.parse_args()
    used: dict[str, list[Image.Image]] = {}
    for family, path in sorted(fonts().items()):
        try:
            glyphs = [glyph_picture(character, path) for character in CHARACTERS]
        except OSError as error:
            print(f"{family} is left out: {error}")
            continue
        blank = any(glyph.getextrema() == (255, 255) for glyph in glyphs)
        if not blank and not any(_alike(glyphs, others) for others in used.values()):
            used[family] = glyphs
    for number, (family, glyphs) in enumerate(used.items()):
        part = "test" if number % 3 == 2 else "train"
        for character, glyph in zip(CHARACTERS, glyphs, strict=True):
            folder = arguments.out / part / character
            folder.mkdir(parents=True, exist_ok=True)
            glyph.save(folder / f"{family}.png")
    print(f"{len(used)} fonts, {len(used) // 3} of them to test: {', '.join(used)}")


def fonts() -> dict[str, Path]:
    """Font family → its first file, of all that have the characters."""
    listed = subprocess.run(
        ["fc-list", f":charset={ord(RARE):x}:lang=ja", "family", "file"], capture_output=True, text=True, check=True
    ).stdout
    files: dict[str, Path] = {}
    for line in sorted(listed.splitlines()):
        path, _, names = line.partition(": ")
        stem = re.split(r"[,\\-]| (?:P|UI|Mono|1|2|C|Bold)\b", names.strip())[0]
        files.setdefault(re.sub(r"\W+", "-", stem), Path(path))
    return files


def _alike(glyphs: list[Image.Image], others: list[Image.Image]) -> bool:
    """Whether most of the last characters, which are kanji, are the same in two fonts."""
    pairs = list(zip(glyphs[-20:], others[-20:], strict=True))
    return sum(ImageStat.Stat(ImageChops.difference(*pair)).mean[0] < 4 for pair in pairs) > len(pairs) / 2


def glyph_picture(character: str, path: Path) -> Image.Image:
    """The character in black on white, as large as fits, in the middle."""
    font = ImageFont.truetype(path, SIDE_PX - 2 * MARGIN_PX)
    left, top, right, bottom = font.getbbox(character)
    picture = Image.new("L", (SIDE_PX, SIDE_PX), 255)
    place = (SIDE_PX - right - left) / 2, (SIDE_PX - bottom - top) / 2
    ImageDraw.Draw(picture).text(place, character, font=font, fill=0)
    return picture


if __name__ == "__main__":
    main()
