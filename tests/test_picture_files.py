"""Pictures and captions from folders, as people have them: read, or named with the reason."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from clora_core.errors import ConceptError
from clora_core.picture_files import PIXELS_LIMIT, each_picture, files_in, prepared, read_folder, upright
from clora_core.pictures import as_floats, bucket, covering

Sizes = list[tuple[int, int]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of different sizes in a folder whose name has blanks and other alphabets."""
    home = tmp_path / "meine Katze 猫"
    home.mkdir()
    Image.new("RGB", (80, 40), (255, 0, 0)).save(home / "b.png")
    Image.new("L", (30, 90), 128).save(home / "a.jpg")
    return home


def read(folder: Path, resolution_px: int = 64, multiple: int = 8):
    """Pixels, captions and messages."""
    said: list[str] = []
    pictures, captions = read_folder(folder, resolution_px=resolution_px, multiple=multiple, say=said.append)
    return [picture.read() for picture in pictures], captions, "\n".join(said)


def noted(path: Path) -> str:
    said: list[str] = []
    upright(path, said.append)
    return "\n".join(said)


def plain(size: tuple[int, int] = (64, 64), color: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_pictures_come_in_order_of_name_and_keep_their_shape(folder: Path):
    (gray, red), captions, said = read(folder)
    assert gray.shape == (3, 96, 32) and red.shape == (3, 40, 80) and captions == ()
    assert gray.abs().max() < 0.02, "the gray one is a.jpg"
    torch.testing.assert_close(red.mean((1, 2)), torch.tensor([1.0, -1.0, -1.0]))
    assert "2 pictures" in said and "in 2 sizes" in said


@pytest.mark.parametrize("size", [(3000, 4000), (1000, 1000), (768, 1024), (512, 700), (640, 360), (100, 101)])
@pytest.mark.parametrize(("side", "multiple"), [(512, 64), (1024, 64), (1024, 32), (64, 8)])
def test_a_bucket_has_nearly_the_area_and_the_shape(size: tuple[int, int], side: int, multiple: int):
    height, width = bucket(size, area_px=side**2, multiple=multiple)
    assert height % multiple == width % multiple == 0 and 0.7 * side**2 < height * width <= side**2
    scaled, (top, left) = covering(size, (height, width))
    assert scaled[0] - height in (2 * top, 2 * top + 1) and scaled[1] - width in (2 * left, 2 * left + 1)
    assert height * width > 0.84 * scaled[0] * scaled[1], "hardly anything is cut off"
    assert bucket(size[::-1], area_px=side**2, multiple=multiple) == (width, height)


def test_a_portrait_keeps_its_head(tmp_path: Path):
    tall = Image.new("RGB", (600, 800), (0, 0, 0))
    tall.paste((255, 255, 255), (0, 0, 600, 80))
    tall.save(tmp_path / "tall.png")
    ((picture,), _, _) = read(tmp_path, 512, 64)
    assert picture.shape == (3, 576, 448) and picture[:, :40].min() > 0.9


def test_what_is_cut_off_and_the_size_before_are_known(tmp_path: Path):
    plain((700, 500)).save(tmp_path / "a.png")
    picture = prepared(tmp_path / "a.png", print, resolution_px=512, multiple=64)
    assert (picture.original, picture.size) == ((500, 700), (448, 576))
    assert picture.crop == (0, 25)  # 448/500 > 576/700: scaled to 627 columns, of which 51 go


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_lies_as_its_camera_held_it(tmp_path: Path, orientation: int):
    """Against Pillow's own function, on a picture of which every corner is different."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as again:
        from PIL import ImageOps

        expected = ImageOps.exif_transpose(again)
    assert upright(tmp_path / "turned.png").tobytes() == expected.tobytes()


def exif_of(gps: bytes, cut: int | None = None) -> bytes:
    """EXIF that turns the picture by 90°, with a GPS directory of these bytes."""
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHLL", 0x8825, 4, 1, 8 + 2 + 24 + 4)
    whole = b"Exif\0\0II*\0" + struct.pack("<L", 8) + struct.pack("<H", 2) + entries + struct.pack("<L", 0) + gps
    return whole[:cut]


def test_a_photo_with_odd_exif_is_read(tmp_path: Path):
    text_for_a_byte = struct.pack("<H", 1) + struct.pack("<HHL", 5, 2, 2) + b"0\0\0\0" + struct.pack("<L", 0)
    plain((64, 32)).save(tmp_path / "phone.jpg", exif=exif_of(text_for_a_byte))
    assert upright(tmp_path / "phone.jpg").size == (32, 64)
    plain((64, 32)).save(tmp_path / "cut.webp", exif=exif_of(b"", cut=12))
    assert upright(tmp_path / "cut.webp").size == (64, 32)
    _, _, said = read(tmp_path)
    assert "2 pictures" in said


def test_captions_lie_beside_the_pictures(folder: Path):
    (folder / "a.txt").write_text("a photo of {word} ☀\n", encoding="utf-8")
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbf{word} at night")
    assert read(folder)[1] == ("a photo of {word} ☀", "{word} at night")


@pytest.mark.parametrize("name", ["a.caption", "a.TXT", "a.jpg.txt", "A.txt", "a.JPG.caption"])
def test_a_caption_may_have_another_suffix(folder: Path, name: str):
    (folder / name).write_text("{word},\nsitting")
    _, captions, said = read(folder)
    assert captions == ("{word},\nsitting", "")
    assert ", 1 with a caption. The others use the concept's template." in said


def test_an_empty_caption_is_none(folder: Path):
    (folder / "a.txt").write_text(" \n")
    assert read(folder)[1] == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_caption_may_have_a_byte_order_mark(folder: Path, encoding: str):
    (folder / "a.txt").write_text("{word} ☀", encoding=encoding)
    assert read(folder)[1] == ("{word} ☀", "")


def test_captions_without_a_picture_are_named(folder: Path):
    for name in ("a.jpg.txt", "c.caption", "c.txt"):
        (folder / name).write_text("{word}")
    assert "Left out, texts without a picture (2): c.caption, c.txt" in read(folder)[2]


def test_a_caption_that_is_no_text_is_named(folder: Path):
    (folder / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConceptError, match=r"a\.txt' cannot be read as UTF-8"):
        read(folder)


def test_what_is_no_picture_is_named_and_the_rest_goes_on(folder: Path):
    (folder / "c.png").write_bytes(b"no picture at all")
    (folder / "page.jpg").write_text("<!doctype html>")
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:60])
    (folder / "notes.docx").write_bytes(b"PK\3\4")
    pictures, _, said = read(folder)
    assert len(pictures) == 2
    assert "Left out, it is not a picture, or its format cannot be read (3): c.png, notes.docx, page.jpg" in said
    assert "cut.png" in said and "Traceback" not in said
    assert "EXIF" not in said, "nothing else is said of a picture that is left out"


def test_files_of_the_system_and_of_trainers_are_no_pictures(folder: Path):
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/a.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "a.npz").write_bytes(b"")
    pictures, _, said = read(folder)
    assert len(pictures) == 2 and "Left out, system files (4)" in said and "a.npz" not in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((f"a.{suffix}", {}) for suffix in ("JPG", "PNG", "gif", "tiff", "bmp", "webp", "avif", "jp2")),
        *(("a.jfif", {"format": "JPEG"}), ("a", {"format": "PNG"}), ("a.unknown", {"format": "JPEG"})),
    ],
)
def test_every_kind_that_pillow_reads_is_read(tmp_path: Path, name: str, options: dict[str, str]):
    try:
        plain().save(tmp_path / name, **options)
    except (KeyError, OSError):
        pytest.skip("this Pillow cannot write it")
    ((picture,), _, _) = read(tmp_path)
    torch.testing.assert_close(picture.mean((1, 2)), torch.tensor([200, 30, 30]) / 127.5 - 1, atol=0.06, rtol=0)


def test_heic_without_its_library_is_said(tmp_path: Path):
    plain().save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    _, _, said = read(tmp_path)
    assert "b.heic" in said and ("pillow-heif" in said or "cannot" in said or "not a picture" in said)


def test_pictures_whose_colors_are_not_known_are_named(tmp_path: Path):
    """Floating point numbers would be clipped to black, and raw photos begin with a thumbnail."""
    plain().save(tmp_path / "a.png")
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(tmp_path / "b.tif")
    plain().save(tmp_path / "c.dng", "TIFF", tiffinfo={254: 1})
    pictures, _, said = read(tmp_path)
    assert len(pictures) == 1
    assert "floating point numbers, whose white is not known; save it with 8 or 16 bits (1): b.tif" in said
    assert "small preview, as raw photos do; save it as PNG or JPEG (1): c.dng" in said


def test_postscript_is_never_run(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run")
    with pytest.raises(ConceptError, match="not a picture"):
        upright(tmp_path / "a.png")


def test_subfolders_and_repeats_are_read(tmp_path: Path):
    for name in ("img/10_sks cat/1.png", "img/10_sks cat/2.png", "img/5_sks cat sleeping/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        plain().save(tmp_path / name)
    pictures, _, said = read(tmp_path / "img")
    assert len(pictures) == 5 and "3 pictures" in said and "5 with repeats" in said
    assert len(read(tmp_path / "img" / "10_sks cat")[0]) == 2, "ten times as often as nothing else"


def test_repeats_reach_into_subfolders_of_their_folder(tmp_path: Path):
    for name in ("10_cat/1.png", "10_cat/outside/2.png", "1_photos/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        plain().save(tmp_path / name)
    assert len(read(tmp_path)[0]) == 21


def test_links_are_followed_once_and_those_to_nothing_are_named(tmp_path: Path):
    for name in ("cats/1.png", "other/2.png"):
        (tmp_path / name).parent.mkdir()
        plain().save(tmp_path / name)
    for name, target in (("b", "other"), ("c", "other"), ("loop", "cats"), ("gone.png", "nothing")):
        (tmp_path / "cats" / name).symlink_to(tmp_path / target)
    pictures, _, said = read(tmp_path / "cats")
    assert len(pictures) == 2 and "Left out, broken links (1): gone.png" in said


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    plain().save(tmp_path / "1.png")
    scan = os.scandir

    def refusing(path: str):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert "Left out, folders that cannot be read (1): sub" in read(tmp_path)[2]


def test_small_and_long_pictures_are_mentioned(tmp_path: Path):
    plain((1, 1)).save(tmp_path / "a.png")
    plain((3000, 8)).save(tmp_path / "b.png")
    plain((64, 64)).save(tmp_path / "c.png")
    _, _, said = read(tmp_path)
    assert "Enlarged, much smaller than 64×64 pixels (2): a.png, b.png" in said
    assert "Cut at the edges, too long or too wide (1): b.png" in said


def test_an_animation_gives_its_first_picture(tmp_path: Path):
    plain().save(tmp_path / "a.gif", save_all=True, append_images=[plain(color=(0, 0, 255))])
    ((picture,), _, said) = read(tmp_path)
    assert picture[0].mean() > 0 and "first picture" in said


def test_transparency_becomes_white(tmp_path: Path):
    """Transparent pixels may have any color."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[2:6, 2:6] = (0, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = Image.new("RGB", (8, 8), "white")
    expected.paste("black", (2, 2, 6, 6))
    assert upright(tmp_path / "a.png").tobytes() == expected.tobytes()
    assert "white" in noted(tmp_path / "a.png")
    half = Image.new("LA", (8, 8), (0, 128))
    half.save(tmp_path / "b.png")
    assert upright(tmp_path / "b.png").getpixel((0, 0)) == (127, 127, 127)
    palette = plain((8, 8)).quantize(4)
    palette.save(tmp_path / "c.png", transparency=0)
    assert upright(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_of_gray_are_the_same_gray(tmp_path: Path):
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "gray.png")
    ((picture,), _, _) = read(tmp_path, 8)
    assert torch.equal(picture, as_floats(torch.from_numpy((values >> 8).astype(np.uint8)).expand(3, 8, 8)))


def test_a_color_profile_is_converted(tmp_path: Path):
    """Pixels in a profile whose red is sRGB's blue, and the other way around."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    red = plain()
    red.save(tmp_path / "a.png", icc_profile=swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    assert upright(tmp_path / "a.png").getpixel((3, 3)) == pytest.approx((30, 30, 200), abs=3)
    red.save(tmp_path / "b.png", icc_profile=b"no profile")
    assert upright(tmp_path / "b.png").tobytes() == red.tobytes() and "color profile" in noted(tmp_path / "b.png")
    red.save(tmp_path / "c.png", icc_profile=srgb)
    assert upright(tmp_path / "c.png").tobytes() == red.tobytes(), "bit for bit"


def test_cmyk_is_read_as_colors(tmp_path: Path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = upright(tmp_path / "a.jpg").getpixel((3, 3))
    assert red > 240 and green < 15 and blue < 15


def test_a_png_with_a_long_workflow_is_read(tmp_path: Path):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("workflow", "x" * 3_000_000, zip=True)
    plain().save(tmp_path / "a.png", pnginfo=texts)
    assert upright(tmp_path / "a.png").size == (64, 64)


def test_a_picture_that_would_fill_the_memory_is_refused_unread(tmp_path: Path):
    """A PNG of a few bytes that claims more pixels than are read, and one that claims as many as its format can."""
    for side, rule in (
        (PIXELS_LIMIT // 10_000 + 1, f"limit is {PIXELS_LIMIT}"),
        (2**31 - 1, "cannot be read|limit"),
    ):
        ihdr = b"IHDR" + struct.pack(">IIBBBBB", 10_000, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT5\xaf\x06\x1e")
        with pytest.raises(ConceptError, match=rule):
            upright(tmp_path / "bomb.png")


def test_a_hundred_pictures_take_no_more_memory_than_one(tmp_path: Path):
    for number in range(100):
        plain(color=(number, 9, 9)).save(tmp_path / f"{number:03}.png")
    tracemalloc.start()
    said: list[str] = []
    pictures, _ = read_folder(tmp_path, resolution_px=512, multiple=64, say=said.append)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pictures) == 100 and held < 2**20, "a picture at this resolution takes 3 MiB"


def test_no_folder_and_no_pictures_are_said(tmp_path: Path):
    with pytest.raises(ConceptError, match="not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ConceptError, match="no pictures"):
        read(tmp_path)
    (tmp_path / "page.jpg").write_text("<html>")
    with pytest.raises(ConceptError, match=r"no pictures .*not a picture, .*: page\.jpg"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", b"\xff\xd8\xff"])
def test_broken_pictures_end_in_our_error(content: bytes, tmp_path: Path):
    (tmp_path / "cat.jpg").write_bytes(content)
    with pytest.raises(ConceptError, match="cannot be read as a picture"):
        upright(tmp_path / "cat.jpg")


def test_random_damage_ends_in_our_error_or_in_a_picture(tmp_path: Path):
    """Four kinds of files, with bytes changed or cut at random: never an exception of a decoder's own."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (24, 24, 4), dtype=np.uint8))
    for suffix, mode in ((".png", "RGBA"), (".jpg", "RGB"), (".webp", "RGBA"), (".gif", "P"), (".tiff", "CMYK")):
        path = tmp_path / f"a{suffix}"
        picture.convert(mode).save(path, exif=exif_of(b"")) if suffix != ".gif" else picture.convert(mode).save(path)
        whole = path.read_bytes()
        for _ in range(120):
            content = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
            for place in rng.integers(0, len(content), 6):
                content[place] = rng.integers(0, 256)
            path.write_bytes(content)
            try:
                assert upright(path).mode == "RGB"
            except ConceptError as error:
                assert str(error).startswith(f"'{path}'")


def test_files_come_from_subfolders_in_order(tmp_path: Path):
    for name in ("b/1.png", "a.png", "b/c/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        plain().save(tmp_path / name)
    found = each_picture(files_in(tmp_path, print), lambda path, note: path.name, print, root=tmp_path)
    assert [name for _, name in found] == ["a.png", "1.png", "2.png"]


def test_folders_are_listed_once_however_many_pictures_they_hold(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(20):
        Image.new("RGB", (64, 64)).save(folder / f"more{number}.png")
        (folder / f"more{number}.txt").write_text(f"{{word}} {number}")
    listed: list[Path] = []
    plain = Path.iterdir

    def counted(path: Path):
        listed.append(path)
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", counted)
    _, captions, _ = read(folder)
    assert [caption for caption in captions if caption] == sorted(f"{{word}} {number}" for number in range(20))
    assert listed.count(folder) <= 1
