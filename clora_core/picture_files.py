"""Read pictures and captions from users' files, and report what is left out or changed, and why."""

import codecs
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from .errors import ConceptError
from .pictures import Picture, as_floats, bucket, covering, to_bytes
from .texts import counted

# What Pillow reads without running another program; HEIF if pillow-heif is installed.
FORMATS = ("PNG JPEG MPO WEBP BMP DIB GIF TIFF AVIF HEIF JPEG2000 PPM TGA ICO PCX SGI QOI").split()
HEIF = (".heic", ".heif", ".hif")
PIXELS_LIMIT = 64_000_000  # of one picture file; a larger one is probably a decompression bomb
TEXT_LIMIT_BYTES = 64 * 2**20  # of the texts in a PNG, such as a workflow; Pillow's own limit is 1 MiB each
CAPTIONS = (".txt", ".caption")
BESIDE = (*CAPTIONS, ".json", ".npz", ".safetensors", ".toml", ".yaml")  # what trainers keep beside pictures
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")  # like all names that begin with a dot
REPEATED = re.compile(r"(\d{1,3})_.+")  # kohya's folders: 10_word counts ten times, 1_word once
SUBFILE = 254  # TIFF's tag NewSubfileType; its lowest bit marks a smaller version of another picture in the file
SMALL = 2.0  # a picture that is enlarged more than this is mentioned
CUT = 0.15  # and so is one that loses more than this share
MASK = ".mask"  # the end of the stem of a mask's file: cat.mask.png for cat.png
EMPTY_MASK = "Its mask selects nothing and is ignored"
NAMED = 3  # files that are named for each reason
TURNED = {  # EXIF orientation → what shows the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Say = Callable[[str], None]
Made = TypeVar("Made")


def read_folder(
    folder: Path, *, resolution_px: int, multiple: int, say: Say, alpha_mask: bool = False
) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The pictures of a folder and its subfolders, in order of their paths, and their captions.

    Every picture keeps its shape, as far as multiples of `multiple` allow, at about resolution_px² pixels. A caption is
    a text file with the picture's name: cat.txt, cat.caption or cat.jpg.txt for cat.jpg. "" stands for a missing
    caption; without any, there are none at all. Pictures under a folder 10_word count ten times. A mask is a picture
    cat.mask.png, white where cat.jpg counts; alpha_mask: without one, what is not transparent counts. say: reports
    what was found and left out. Raises ConceptError if no picture can be read, and for captions that are not text.
    """
    listing = Listing()
    read = partial(prepared, resolution_px=resolution_px, multiple=multiple, alpha_mask=alpha_mask, listing=listing)
    found = each_picture(files_in(folder, say), read, say, root=folder)
    captions = [caption_of(path, listing) for path, _ in found]
    places = repeated([path for path, _ in found], folder)
    sizes = {picture.size for _, picture in found}
    with_repeats = f", {len(places)} with repeats" if len(places) > len(found) else ""
    several = f", in {len(sizes)} sizes" if len(sizes) > 1 else ""
    masks = sum(picture.read_mask is not None for _, picture in found)
    masked = f", {masks} with a mask" if masks else ""
    own = sum(map(bool, captions))
    captioned = f", {own} with a caption" if own else ""
    others = " The others use the concept's template." if 0 < own < len(found) else ""
    say(f"{counted(len(found), 'picture')} in '{folder}'{with_repeats}{several}{masked}{captioned}.{others}")
    pictures = tuple(found[place][1] for place in places)
    return pictures, tuple(captions[place] for place in places) if any(captions) else ()


def files_in(folder: Path, say: Say) -> list[Path]:
    """All files of a folder and its subfolders that may be pictures, in order of their paths."""
    if not folder.is_dir():
        raise ConceptError(f"'{folder}' is not a folder. Give the folder with the pictures.")
    refused: list[Path] = []
    paths = all_files(folder, lambda error: refused.append(Path(error.filename)))
    _say_of(refused, folder, "Left out, folders that cannot be read", say)
    gone = [path for path in paths if path.is_symlink() and not path.exists()]
    _say_of(gone, folder, "Left out, broken links", say)
    paths = [path for path in paths if path.is_file()]
    hidden = [path for path in paths if any(map(_of_the_system, path.relative_to(folder).parts))]
    _say_of(hidden, folder, "Left out, system files", say)
    shown = sorted(set(paths) - set(hidden))
    files = [path for path in shown if path.suffix.lower() not in BESIDE]
    pictures = [path for path in files if not _is_mask(path)]
    stems = {(path.parent, path.stem.lower()) for path in pictures}
    masks = [path for path in files if _is_mask(path)]
    alone = [path for path in masks if (path.parent, path.stem.lower().removesuffix(MASK)) not in stems]
    _say_of(alone, folder, "Left out, masks without a picture", say)
    stems |= {(path.parent, path.name.lower()) for path in pictures}
    texts = [path for path in shown if path.suffix.lower() in CAPTIONS]
    alone = [path for path in texts if (path.parent, path.stem.lower()) not in stems]
    _say_of(alone, folder, "Left out, texts without a picture", say)
    return pictures


def all_files(folder: Path, refused: Callable[[OSError], object] = lambda error: None) -> list[Path]:
    """Everything in a folder and its subfolders but folders, in order. Links are followed, to each folder once.

    refused: called with the error of each folder that cannot be read.
    """
    seen: set[str] = set()
    paths: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
        else:
            seen.add(real)
            folders.sort()
            paths += [Path(place, name) for name in names]
    return sorted(paths)


def repeated(paths: Sequence[Path], folder: Path) -> list[int]:
    """The places of these pictures of a folder, each as often as it counts by kohya's folders, such as 10_word."""
    counts = [_repeats(path, folder) for path in paths]
    return [place for place, count in enumerate(counts) for _ in range(count // math.gcd(*counts))]


def each_picture(
    paths: Iterable[Path], read: Callable[[Path, Say], Made], say: Say, *, root: Path
) -> list[tuple[Path, Made]]:
    """What `read` makes of every picture among these files. Files that cannot be read are reported and left out.

    read: gets the file, and a function to report what is changed in it. root: the folder that the names are given in.
    Raises ConceptError if no picture is left.
    """
    made: list[tuple[Path, Made]] = []
    reasons: dict[str, list[Path]] = {}
    for path in paths:
        notes: list[str] = []
        try:
            made.append((path, read(path, notes.append)))
        except UnreadableError as error:
            notes = [f"Left out, {error.reason}"]
        for note in notes:
            reasons.setdefault(note, []).append(path)
    for reason, files in reasons.items():
        _say_of(files, root, reason, say)
    if not made:
        why = next((f" ({reason}: {files[0].name})" for reason, files in reasons.items()), "")
        where = f" in '{root}'" if root.name else ""
        raise ConceptError(f"There are no pictures{where} that can be read{why}. Use PNG or JPEG, for instance.")
    return made


class Listing:
    """The files beside pictures, by their stems in any case. Every folder is listed once."""

    def __init__(self) -> None:
        self._stems: dict[Path, dict[str, list[Path]]] = {}

    def named(self, folder: Path, stem: str) -> list[Path]:
        """The files of the folder with that stem, in order."""
        if folder not in self._stems:
            stems = self._stems.setdefault(folder, {})
            for path in sorted(folder.iterdir()):
                stems.setdefault(path.stem.lower(), []).append(path)
        return self._stems[folder].get(stem.lower(), [])


def prepared(
    path: Path,
    note: Say,
    *,
    resolution_px: int,
    multiple: int,
    alpha_mask: bool = False,
    listing: Listing | None = None,
) -> Picture:
    """A file's picture as it is trained on, with its mask. note: reports what is changed. Raises UnreadableError."""
    whole = upright(path, note)
    original = whole.height, whole.width
    target = bucket(original, area_px=resolution_px**2, multiple=multiple)
    scaled, crop = covering(original, target)
    if scaled[0] > SMALL * original[0]:
        note(f"Enlarged, much smaller than {resolution_px}×{resolution_px} pixels")
    if target[0] * target[1] < (1 - CUT) * scaled[0] * scaled[1]:
        note("Cut at the edges, too long or too wide")
    size = target[1], target[0]
    mask = mask_of(path, listing or Listing())
    read_mask = partial(_alpha, path, size) if alpha_mask else None
    if mask:
        read_mask = partial(mask_values, mask, whole.size, size)
    picture = Picture.of(partial(_pixels, path, size), original, crop, read_mask)
    if read_mask and not picture.read_mask:
        note(EMPTY_MASK)
    return picture


def upright(path: Path, note: Say = lambda reason: None, background: str = "white") -> Image.Image:
    """The picture in sRGB, rotated according to its EXIF orientation, on the background where it is transparent.

    note: reports what is changed. Raises UnreadableError.
    """
    if path.suffix.lower() in HEIF and not _with_heif():
        raise UnreadableError(path, "reading HEIC needs pillow-heif (pip install pillow-heif)")
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = TEXT_LIMIT_BYTES
    try:
        with _without_warnings(), Image.open(path, formats=_formats()) as picture:
            if picture.width * picture.height > PIXELS_LIMIT:
                size = f"{picture.width}×{picture.height}"
                raise UnreadableError(path, f"it has {size} pixels; the limit is {PIXELS_LIMIT}")
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                note("Only the first picture of an animation or of several pages is used")
            if picture.format == "TIFF" and picture.tag_v2.get(SUBFILE, 0) & 1:  # type: ignore[attr-defined]
                raise UnreadableError(path, "it begins with a small preview, as raw photos do; save it as PNG or JPEG")
            turned = TURNED.get(_orientation(picture, note))
            profile = picture.info.get("icc_profile")
            whole = picture.copy() if turned is None else picture.transpose(turned)
            return _flat(whole, profile, note, background)
    except UnreadableError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableError(path, "it is not a picture, or its format cannot be read") from error
    except Exception as error:  # decoders raise whatever they like on broken files
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UnreadableError(path, " ".join(text.split())[:200] or type(error).__name__) from error


class UnreadableError(ConceptError):
    """A file that cannot be read as a picture, and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' cannot be read as a picture: {reason}.")
        self.reason = reason


def caption_of(picture: Path, listing: Listing) -> str:
    """The caption beside a picture, without empty lines, or "". Raises ConceptError if it cannot be read as text."""
    files = [path for stem in (picture.stem, picture.name) for path in listing.named(picture.parent, stem)]
    places = [(CAPTIONS.index(suffix), path) for path in files if (suffix := path.suffix.lower()) in CAPTIONS]
    for _, path in sorted(places, key=lambda place: (place[1].stem.lower() != picture.stem.lower(), place[0])):
        try:
            lines = [" ".join(line.split()) for line in _text(path.read_bytes()).splitlines()]
            if any(lines):
                return "\n".join(filter(None, lines))
        except (UnicodeDecodeError, OSError) as error:
            raise ConceptError(
                f"The caption '{path}' cannot be read as UTF-8 text: {error}. Save it as UTF-8, or remove it."
            ) from error
    return ""


def mask_of(picture: Path, listing: Listing) -> Path | None:
    """The file of a picture's mask, cat.mask.png for cat.jpg; None if there is none."""
    files = listing.named(picture.parent, f"{picture.stem}{MASK}")
    return next((path for path in files if path.suffix.lower() not in BESIDE), None)


def mask_values(path: Path, picture: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A mask's file, stretched to its picture's (width, height) and then fitted as that is: white 1, black 0.

    Transparent parts count as black. Returns (height, width) of `size`. Raises UnreadableError that names the mask.
    """
    try:
        gray = upright(path, background="black").convert("L").resize(picture, Image.Resampling.BILINEAR)
    except UnreadableError as error:
        raise UnreadableError(path, f"its mask {path.name} cannot be read: {error.reason}") from error
    return to_bytes(ImageOps.fit(gray, size, Image.Resampling.BILINEAR))[0].float() / 255


def _alpha(path: Path, size: tuple[int, int]) -> Tensor:
    """1 where the picture is opaque, 0 where it is transparent."""
    with _without_warnings(), Image.open(path, formats=_formats()) as picture:
        turned = TURNED.get(_orientation(picture, lambda reason: None))
        alpha = picture.convert("RGBA").getchannel("A")
    fitted = ImageOps.fit(alpha if turned is None else alpha.transpose(turned), size, Image.Resampling.BILINEAR)
    return to_bytes(fitted)[0].float() / 255


def _pixels(path: Path, size: tuple[int, int]) -> Tensor:
    return as_floats(to_bytes(ImageOps.fit(upright(path), size, Image.Resampling.LANCZOS)))


def _text(content: bytes) -> str:
    """A text in UTF-8, or in UTF-16 with its byte order mark, as some editors write it."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def _flat(picture: Image.Image, profile: bytes | None, note: Say, background: str) -> Image.Image:
    """The picture in 8 bits of sRGB, without transparency."""
    if picture.mode == "F":
        raise ValueError("it holds floating point numbers, whose white is not known; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to white
        picture = Image.fromarray((np.asarray(picture, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colors = _in_srgb(picture, profile, note)
    if alpha is None or alpha.getextrema()[0] == 255:
        return colors
    note(f"Placed on {background}, partly transparent")
    return Image.composite(colors, Image.new("RGB", colors.size, background), alpha)


def _in_srgb(picture: Image.Image, profile: bytes | None, note: Say) -> Image.Image:
    if profile:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(own).lower():
                plain = picture if picture.mode in ("CMYK", "L", "RGB") else picture.convert("RGB")
                converted = ImageCms.profileToProfile(plain, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return converted or plain.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            note("Its color profile cannot be used and is ignored")
    return picture.convert("RGB")


def _orientation(picture: Image.Image, note: Say) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001 whatever is wrong with it, the picture itself is fine
        note("Its EXIF data is damaged and ignored")
        return 1


def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """While entered, decoders do not warn about files that they can read anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _with_heif() -> bool:
    """Whether HEIF can be read; registers pillow-heif if it is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError:
        return "HEIF" in Image.OPEN
    pillow_heif.register_heif_opener()
    return True


def _repeats(path: Path, folder: Path) -> int:
    """How often a picture counts: the number of the nearest folder above it that is one of kohya's."""
    inside = path.relative_to(folder).parent.parts
    names = [*reversed(inside), folder.resolve().name]
    return next((max(1, int(match[1])) for match in map(REPEATED.fullmatch, names) if match), 1)


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(MASK)


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _say_of(files: list[Path], root: Path, reason: str, say: Say) -> None:
    """Say why something is done with these files: how many they are, and the names of some."""
    if files:
        names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in files]
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        say(f"{reason} ({len(names)}): {', '.join(names[:NAMED])}{more}")
