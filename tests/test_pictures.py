"""Pictures and captions from folders, as people have them."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from clora_core.errors import ConceptError, MuseumError
from clora_core.pictures import (
    PIXELS_LIMIT,
    THUMBNAIL_LIMIT_SCANS,
    as_floats,
    from_thumbnail,
    read_folder,
    thumbnail,
    thumbnail_of,
    to_bytes,
    to_picture,
    upright,
)


@pytest.fixture
def folder(tmp_path):
    """Two pictures of different sizes in a folder whose name has blanks and other alphabets."""
    home = tmp_path / "meine Katze 猫"
    home.mkdir()
    Image.new("RGB", (80, 40), (255, 0, 0)).save(home / "b.png")
    Image.new("L", (30, 90), 128).save(home / "a.jpg")
    return home


def test_pictures_come_in_order_of_name_as_squares(folder):
    pictures, captions = read_folder(folder, resolution_px=16)
    assert pictures.shape == (2, 3, 16, 16)
    assert captions == ()
    assert pictures[0].abs().max() < 0.02, "the gray one is a.jpg"
    torch.testing.assert_close(pictures[1].mean((1, 2)), torch.tensor([1.0, -1.0, -1.0]))


def test_the_middle_square_is_kept(tmp_path):
    wide = Image.new("RGB", (60, 20), (0, 0, 0))
    wide.paste((255, 255, 255), (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    pictures, _ = read_folder(tmp_path, resolution_px=20)
    assert pictures.min() == 1


def test_a_photo_lies_as_its_camera_held_it(tmp_path):
    picture = Image.new("RGB", (20, 20), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    picture.save(tmp_path / "turned.png", exif=exif)
    pictures, _ = read_folder(tmp_path, resolution_px=20)
    assert pictures[0, 0, 0, 0] == -1 and pictures[0, 0, -1, 0] == 1


def test_captions_lie_beside_the_pictures(folder):
    (folder / "a.txt").write_text("a photo of {word} ☀\n", encoding="utf-8")
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf{word} at night")
    assert read_folder(folder, resolution_px=8)[1] == ("a photo of {word} ☀", "{word} at night")


def test_a_missing_caption_is_named(folder):
    (folder / "a.txt").write_text("{word}")
    with pytest.raises(ConceptError, match=r"b\.txt is missing"):
        read_folder(folder, resolution_px=8)


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe\xfa", "UTF-8"), (b"  \n", "empty")])
def test_an_unreadable_caption_is_named(folder, content, said):
    (folder / "a.txt").write_bytes(content)
    (folder / "b.txt").write_text("{word}")
    with pytest.raises(ConceptError, match=said):
        read_folder(folder, resolution_px=8)


def test_a_broken_picture_is_named(folder):
    (folder / "c.png").write_bytes(b"no picture at all")
    with pytest.raises(ConceptError, match=r"c\.png"):
        read_folder(folder, resolution_px=8)


def test_no_folder_and_no_pictures_are_said(tmp_path):
    with pytest.raises(ConceptError, match="not a folder"):
        read_folder(tmp_path / "nowhere", resolution_px=8)
    with pytest.raises(ConceptError, match="no pictures"):
        read_folder(tmp_path, resolution_px=8)


def test_bytes_and_floats_are_the_same_picture():
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(to_bytes(to_picture(as_floats(pixels))), pixels)


def test_sixteen_bits_of_grey_are_the_same_grey(tmp_path):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    pictures, _ = read_folder(tmp_path, resolution_px=8)
    assert torch.equal(pictures, as_floats(torch.from_numpy((values >> 8).astype(np.uint8)).expand(1, 3, 8, 8)))


def test_a_thumbnail_is_a_small_jpeg(tmp_path):
    data = thumbnail(torch.zeros(3, 700, 500))
    assert data[:2] == b"\xff\xd8" and len(data) < 20_000


def test_a_thumbnail_of_a_file_is_what_it_shows(folder):
    small = Image.open(io.BytesIO(thumbnail_of(folder / "b.png")))
    assert (small.format, small.size) == ("JPEG", (80, 40))
    Image.new("RGBA", (1000, 500), (0, 0, 255, 40)).save(folder / "large.webp")
    assert Image.open(io.BytesIO(thumbnail_of(folder / "large.webp"))).size == (128, 64)


def test_a_picture_that_would_fill_the_memory_is_refused_unread(tmp_path):
    """A PNG of a few bytes that claims more pixels than are read, and one that claims as many as its format can."""
    for side, rule in (
        (PIXELS_LIMIT // 10_000 + 1, f"limit is {PIXELS_LIMIT}"),
        (2**31 - 1, "cannot be read|limit"),
    ):
        ihdr = b"IHDR" + struct.pack(">IIBBBBB", 10_000, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT5\xaf\x06\x1e")
        with pytest.raises(ConceptError, match=rule):
            thumbnail_of(tmp_path / "bomb.png")


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


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_of_a_known_kind_is_refused(content, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(content)
    with pytest.raises(ConceptError, match="cannot be read as a picture"):
        thumbnail_of(tmp_path / "cat.jpg")


def test_transparency_becomes_white(tmp_path):
    """Under transparent pixels a file may hold anything, mostly black."""
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (2, 2, 6, 6))
    drawn.save(tmp_path / "a.png")
    expected = Image.new("RGB", (8, 8), "white")
    expected.paste("black", (2, 2, 6, 6))
    assert upright(tmp_path / "a.png").tobytes() == expected.tobytes()
    drawn.convert("LA").save(tmp_path / "b.png")
    assert upright(tmp_path / "b.png").tobytes() == expected.tobytes()
