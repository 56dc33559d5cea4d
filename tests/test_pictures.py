"""Pictures and captions from folders, as people have them."""

import io
import re

import pytest
import torch
from PIL import Image

from clora_core.errors import MuseumError
from clora_core.pictures import (
    THUMBNAIL_LIMIT_SCANS,
    as_floats,
    from_thumbnail,
    thumbnail,
    to_bytes,
    to_picture,
)


def test_bytes_and_floats_are_the_same_picture():
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(to_bytes(to_picture(as_floats(pixels))), pixels)


def test_a_thumbnail_is_a_small_jpeg(tmp_path):
    data = thumbnail(torch.zeros(3, 700, 500))
    assert data[:2] == b"\xff\xd8" and len(data) < 20_000


def with_scans(count: int) -> bytes:
    """A JPEG of as many scans: the last one of a progressive JPEG again and again, in a few bytes each."""
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(buffer, "JPEG", progressive=True)
    start, *scans = re.split(rb"(?=\xff\xda)", buffer.getvalue()[:-2])
    return b"".join([start, *scans, *scans[-1:] * (count - len(scans)), b"\xff\xd9"])


def test_a_thumbnail_of_many_scans_or_bytes_is_refused_undecoded(monkeypatch):
    """Each scan goes over the whole picture: 192 KB of them took minutes."""
    assert from_thumbnail(with_scans(THUMBNAIL_LIMIT_SCANS)).size == (1024, 1024)
    plain = thumbnail(torch.zeros(3, 8, 8))
    stuffed = plain[:2] + b"\xff\xfe\xff\xff" + bytes(65533)
    stuffed = plain[:2] + stuffed[2:] * 3 + plain[2:]
    monkeypatch.setattr(Image, "open", lambda *inputs, **options: pytest.fail("it was opened"))
    for encoded, rule in (
        (with_scans(THUMBNAIL_LIMIT_SCANS + 1), "21 scans; the limit is 20"),
        (stuffed, "bytes; the limit"),
    ):
        with pytest.raises(MuseumError, match=rule):
            from_thumbnail(encoded)
