"""Pictures between the host and the engine."""

import pytest
import torch
from clora_bare.clora_core.errors import ConceptError
from clora_bare.nodes.actions.pictures import from_files, from_images, in_8_bits, to_images
from PIL import Image


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def prepared(*stacks: torch.Tensor, multiple: int = 64, resolution_px: int = 512) -> list[torch.Tensor]:
    return [picture.read() for picture in from_images(stacks, multiple=multiple, resolution_px=resolution_px)]


def test_pictures_that_fit_are_unchanged():
    given = images(2, 64, 128, 3)
    pictures = torch.stack(prepared(given))
    assert torch.equal(pictures, given.permute(0, 3, 1, 2) * 2 - 1)
    assert torch.allclose(to_images(pictures), given, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(500, 700, (448, 576)), (64, 64, (64, 64)), (2000, 1000, (640, 320)), (10, 30, (64, 64)), (513, 512, (512, 512))],
)
def test_sides_become_multiples_and_large_pictures_shrink(height: int, width: int, expected: tuple[int, int]):
    (picture,) = prepared(images(1, height, width, 3))
    assert tuple(picture.shape) == (3, *expected)
    assert picture.min() >= -1 and picture.max() <= 1


def test_pictures_are_cropped_to_the_middle():
    given = torch.zeros(1, 100, 64, 3)
    given[:, 18:82] = 1  # what is left when the edges are gone
    (picture,) = from_images([given], multiple=64, resolution_px=512)
    assert (picture.read() == 1).all()
    assert (picture.size, picture.original, picture.crop) == ((64, 64), (100, 64), (18, 0))


def test_gray_becomes_rgb_and_alpha_is_dropped():
    gray, rgba = images(1, 64, 64, 1), images(1, 64, 64, 4)
    assert torch.equal(prepared(gray)[0], (gray[0] * 2 - 1).permute(2, 0, 1).expand(3, -1, -1))
    assert torch.equal(prepared(rgba)[0], prepared(rgba[..., :3])[0])


def test_pictures_keep_their_shape_and_get_the_largest_area():
    given = [images(2, 64, 256, 3), images(1, 300, 300, 4), torch.ones(1, 30, 50, 1)]
    pictures = prepared(*given)
    assert [tuple(picture.shape[1:]) for picture in pictures] == [(128, 512)] * 2 + [(256, 256), (192, 320)]
    torch.testing.assert_close(pictures[3], torch.ones(3, 192, 320))
    with pytest.raises(ConceptError, match="list of pictures is empty"):
        prepared()


def test_small_picture_is_enlarged_to_the_largest_area():
    assert [p.shape for p in prepared(images(1, 100, 100, 3), images(1, 1024, 1024, 3))] == [(3, 512, 512)] * 2


def test_inference_tensors_can_be_trained_on():
    with torch.inference_mode():
        (picture,) = from_images([images(1, 64, 64, 3)], multiple=64, resolution_px=64)
    assert not picture.read().is_inference()


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (64, 64, 3), (1, 64, 64, 2), (1, 0, 64, 3)])
def test_no_pictures_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ConceptError, match=r"at least one picture"):
        from_images([torch.zeros(shape)], multiple=64, resolution_px=64)


def test_files_are_read_as_by_load_image():
    file = Image.new("RGB", (2, 1), (255, 0, 51))
    assert torch.equal(from_files([file]), torch.tensor([[[[1.0, 0.0, 0.2]] * 2]]))


def test_eight_bit_rounding_survives_a_png():
    values = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    assert torch.allclose(in_8_bits(values), values, atol=1e-6)
    assert torch.equal(in_8_bits(values + 0.003), in_8_bits(values))


def test_masks_are_stretched_and_cropped_with_their_pictures():
    pictures, masks = [images(2, 64, 64, 3), images(1, 100, 64, 3)], [torch.zeros(2, 64, 64), torch.zeros(1, 50, 32)]
    masks[0][1, :32] = 1
    masks[1][0, 9:41] = 1  # the rows that are left when the edges of the picture are gone
    first, second, third = from_images(pictures, masks, multiple=64, resolution_px=64)
    assert first.read_mask is None, "an empty mask is none"
    assert torch.equal(second.read_mask(), masks[0][1])
    assert third.size == (64, 64) and third.read_mask().mean() > 0.95
    with pytest.raises(ConceptError, match="2 masks for 3 pictures"):
        from_images(pictures, masks[:1], multiple=64, resolution_px=64)
