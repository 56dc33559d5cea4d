"""Masks beside pictures, and pictures whose transparency is one."""

from pathlib import Path

from PIL import Image

from clora_core.picture_files import read_folder


def plain(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, (200, 30, 30))


def test_a_mask_beside_a_picture_is_read_and_is_no_picture(tmp_path: Path):
    plain((80, 64)).save(tmp_path / "1.jpg")
    plain((64, 64)).save(tmp_path / "2.png")
    mask = Image.new("L", (40, 32), 0)
    mask.paste(255, (0, 0, 20, 32))
    mask.save(tmp_path / "1.mask.png")
    said: list[str] = []
    pictures, _ = read_folder(tmp_path, resolution_px=64, multiple=8, say=said.append)
    assert len(pictures) == 2 and pictures[1].read_mask is None
    assert pictures[0].read_mask is not None and "1 with a mask" in said[-1]
    values = pictures[0].read_mask()
    assert values.shape == pictures[0].size
    middle = values.shape[1] // 2
    assert values[:, : middle - 3].min() > 0.99 and values[:, middle + 3 :].max() < 0.01


def test_alpha_is_a_mask_if_asked(tmp_path: Path):
    drawn = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawn.paste((9, 9, 9, 255), (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    drawn.save(tmp_path / "1.png", exif=exif)
    options = {"resolution_px": 64, "multiple": 8, "say": print}
    (plain_one,), _ = read_folder(tmp_path, **options)
    assert plain_one.read_mask is None
    (masked,), _ = read_folder(tmp_path, **options, alpha_mask=True)
    assert masked.read_mask is not None and masked.digest != plain_one.digest
    assert masked.read_mask()[40:].min() == 1 and masked.read_mask()[:24].max() == 0


def test_masks_of_any_shape_and_case_go_with_their_pictures_and_others_are_named(tmp_path: Path):
    plain((128, 64)).save(tmp_path / "1.jpg")
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (0, 0, 20, 40))
    mask.save(tmp_path / "1.MASK.PNG", format="PNG")
    mask.save(tmp_path / "gone.mask.png")
    said: list[str] = []
    (picture,), _ = read_folder(tmp_path, resolution_px=64, multiple=8, say=said.append)
    assert picture.read_mask is not None
    values, half = picture.read_mask(), picture.size[1] // 2
    assert values[:, : half - 4].min() > 0.99 and values[:, half + 4 :].max() < 0.01, "its left half, stretched"
    assert "Left out, masks without a picture (1): gone.mask.png" in said


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path):
    plain().save(tmp_path / "1.jpg")
    plain().save(tmp_path / "2.jpg")
    (tmp_path / "1.mask.png").write_text("no picture")
    said: list[str] = []
    pictures, _ = read_folder(tmp_path, resolution_px=64, multiple=8, say=said.append)
    assert len(pictures) == 1 and "its mask 1.mask.png cannot be read" in said[0]


def test_a_mask_that_selects_nothing_is_mentioned(tmp_path: Path):
    plain().save(tmp_path / "1.jpg")
    Image.new("L", (64, 64), 0).save(tmp_path / "1.mask.png")
    said: list[str] = []
    read_folder(tmp_path, resolution_px=64, multiple=8, say=said.append)
    assert "Its mask selects nothing and is ignored (1): 1.jpg" in said


def test_a_mask_is_black_where_it_is_transparent(tmp_path: Path):
    plain().save(tmp_path / "1.jpg")
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 64, 32))
    mask.save(tmp_path / "1.mask.png")
    (picture,), _ = read_folder(tmp_path, resolution_px=64, multiple=8, say=print)
    assert picture.read_mask is not None
    assert picture.read_mask()[:32].min() == 1 and not picture.read_mask()[32:].any()
