"""Read and convert pictures, thumbnails and captions.

Byte tensors are (3, height, width) uint8; float tensors have the same shape and the range [-1, 1] of all models here.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import ConceptError, MuseumError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PIXELS_LIMIT = 64_000_000  # of one picture file; a larger one is probably a decompression bomb
THUMBNAIL_PX = 128
THUMBNAIL_LIMIT_PX = 1024  # of a thumbnail's longer side, when it is read
THUMBNAIL_LIMIT_BYTES = 192 * 1024
THUMBNAIL_LIMIT_SCANS = 20  # typical progressive JPEGs have 10; decoding time is proportional to the scans
JPEG_START, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"


def to_bytes(picture: Image.Image) -> Tensor:
    """(3, height, width), uint8."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def as_floats(pixels: Tensor) -> Tensor:
    """Bytes to floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_picture(pixels: Tensor) -> Image.Image:
    """A picture of floats (3, height, width) in [-1, 1]."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def thumbnail(pixels: Tensor) -> bytes:
    """A small JPEG of floats (3, height, width)."""
    return _small_jpeg(to_picture(pixels))


def thumbnail_of(path: Path) -> bytes:
    """A small JPEG of a picture file."""
    return _small_jpeg(upright(path))


def check_thumbnail(encoded: bytes) -> None:
    """Raise MuseumError for a thumbnail that is not a JPEG or takes long to decode. Does not decode it."""
    if not encoded.startswith(JPEG_START):
        raise MuseumError("A thumbnail is not a JPEG. Convert it, or leave it out.")
    if len(encoded) > THUMBNAIL_LIMIT_BYTES:
        raise MuseumError(
            f"A thumbnail has {len(encoded)} bytes; the limit is {THUMBNAIL_LIMIT_BYTES}. Make the picture smaller."
        )
    if (scans := encoded.count(JPEG_SCAN)) > THUMBNAIL_LIMIT_SCANS:
        raise MuseumError(
            f"A thumbnail has {scans} scans; the limit is {THUMBNAIL_LIMIT_SCANS}. Save it as an ordinary JPEG without "
            "other pictures in its metadata."
        )


def from_thumbnail(encoded: bytes) -> Image.Image:
    """Decode an untrusted thumbnail to RGB. Raises MuseumError if it is not a small JPEG."""
    check_thumbnail(encoded)
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as picture:
            if max(picture.size) > THUMBNAIL_LIMIT_PX:
                size = f"{picture.width}×{picture.height}"
                raise MuseumError(f"A thumbnail has {size} pixels; the limit is {THUMBNAIL_LIMIT_PX} per side.")
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise MuseumError(f"A thumbnail cannot be read as a JPEG: {error}.") from error


def read_folder(folder: Path, *, resolution_px: int) -> tuple[Tensor, tuple[str, ...]]:
    """The pictures of a folder in order of name, cropped to their center squares, and their captions.

    A caption is a text file with the picture's name (`cat.jpg`, `cat.txt`), as for kohya's trainer and OneTrainer.
    Returns floats (n, 3, resolution, resolution) and n or no captions. Raises ConceptError for unreadable files, and if
    only some pictures have captions.
    """
    if not folder.is_dir():
        raise ConceptError(f"'{folder}' is not a folder. Give the folder with the pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ConceptError(f"There are no pictures in '{folder}'. Supported suffixes: {', '.join(SUFFIXES)}.")
    size = (resolution_px, resolution_px)
    squares = [ImageOps.fit(upright(path), size, Image.Resampling.LANCZOS) for path in paths]
    pictures = torch.stack([as_floats(to_bytes(square)) for square in squares])
    captions = [path.with_suffix(".txt") for path in paths]
    missing = [path.name for path in captions if not path.is_file()]
    if len(missing) == len(captions):
        return pictures, ()
    if missing:
        raise ConceptError(f"'{folder}' has captions, but not for every picture: {missing[0]} is missing.")
    return pictures, tuple(_caption(path) for path in captions)


def _small_jpeg(picture: Image.Image) -> bytes:
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def upright(path: Path) -> Image.Image:
    """The picture in RGB, rotated according to its EXIF orientation. Transparency becomes white."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS_LIMIT:
                size = f"{picture.width}×{picture.height}"
                raise ConceptError(f"'{path}' has {size} pixels; the limit is {PIXELS_LIMIT}. Make it smaller.")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to white
                upright = Image.fromarray((np.asarray(upright, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            if upright.has_transparency_data:
                pixels = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise ConceptError(f"'{path}' cannot be read as a picture: {error}.") from error


def _caption(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (UnicodeDecodeError, OSError) as error:
        raise ConceptError(f"The caption '{path}' cannot be read as UTF-8 text: {error}.") from error
    if not text:
        raise ConceptError(f"The caption '{path}' is empty. Describe the picture, or remove all captions.")
    return text
