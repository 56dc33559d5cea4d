"""Pictures to train on, and thumbnails. `picture_files.py` reads them from files.

Byte tensors are (3, height, width) uint8; float tensors have the same shape and the range [-1, 1] of all models here.
"""

import base64
import functools
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import ConceptError, MuseumError
from .seeds import bytes_of

THUMBNAIL_PX = 128
THUMBNAIL_LIMIT_PX = 1024  # of a thumbnail's longer side, when it is read
THUMBNAIL_LIMIT_BYTES = 192 * 1024
THUMBNAIL_LIMIT_SCANS = 20  # typical progressive JPEGs have 10; decoding time is proportional to the scans
JPEG_START, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"

LONGEST = 4  # times as long as wide, of a picture to train on

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is prepared whenever it is read, so that many of them take no memory.

    read: gives the pixels, (3, *size) in [-1, 1]. size: as it is trained on. original: its size before that. crop: the
    rows at the top and the columns at the left that were cut off after scaling. digest: SHA-256 of pixels and mask.
    read_mask: gives how much each pixel counts, `size` in [0, 1]; None if all count the same.
    """

    read: Callable[[], Tensor]
    size: Size
    original: Size
    crop: tuple[int, int]
    digest: str
    read_mask: Callable[[], Tensor] | None = None

    @classmethod
    def of(
        cls,
        read: Callable[[], Tensor],
        original: Size,
        crop: tuple[int, int] = (0, 0),
        read_mask: Callable[[], Tensor] | None = None,
    ) -> "Picture":
        """Reads the picture once. A mask that is zero everywhere is none. Raises ConceptError for values that are not
        finite."""
        pixels, mask = read(), read_mask() if read_mask else None
        if mask is not None and not mask.any():
            read_mask = mask = None
        digest = hashlib.sha256()
        for values in (pixels, mask):
            if values is not None:
                if not values.isfinite().all():
                    raise ConceptError("A picture contains values that are not finite.")
                digest.update(bytes_of(values))
        return cls(read, _size(pixels), original, crop, digest.hexdigest(), read_mask)


def in_memory(pixels: Tensor) -> tuple[Picture, ...]:
    """Pictures of pixels that are in memory anyway, (n, 3, height, width) in [-1, 1]."""
    return tuple(Picture.of(lambda own=own: own, _size(own)) for own in pixels)


@functools.lru_cache(maxsize=4096)
def bucket(size: Size, *, area_px: int, multiple: int) -> Size:
    """The size to train a picture of that size on: nearly the same shape, and sides that are multiples of `multiple`.

    At most `area_px` pixels, if the smallest size has no more, and at most `LONGEST` times as long as wide.
    """

    def fitness(candidate: Size) -> float:
        stretch = candidate[0] * size[1] / (candidate[1] * size[0])
        return min(stretch, 1 / stretch) * math.sqrt(candidate[0] * candidate[1])

    sides = range(multiple, 2 * math.isqrt(area_px) + 1, multiple)
    candidates = [
        (height, width)
        for height in sides
        for width in sides
        if height * width <= area_px and max(height, width) <= LONGEST * min(height, width)
    ]
    return max(candidates, key=fitness, default=(multiple, multiple))


def covering(size: Size, target: Size) -> tuple[Size, tuple[int, int]]:
    """The size to scale to, so that `target` is just covered, and what is then cut off at the top and on the left."""
    scale = max(target[0] / size[0], target[1] / size[1])
    height, width = (max(least, round(side * scale)) for side, least in zip(size, target, strict=True))
    return (height, width), ((height - target[0]) // 2, (width - target[1]) // 2)


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


def thumbnail(picture: Image.Image | Tensor) -> bytes:
    """A small JPEG of a picture, or of floats (3, height, width)."""
    small = to_picture(picture) if isinstance(picture, Tensor) else picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def as_uri(jpeg: bytes) -> str:
    """A JPEG as a page or the metadata of a LoRA holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


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


def _size(pixels: Tensor) -> Size:
    return int(pixels.shape[-2]), int(pixels.shape[-1])
