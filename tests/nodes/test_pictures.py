"""Pictures between the host and the engine."""

import pytest
import torch
from clora_bare.clora_core.errors import ConceptError
from clora_bare.nodes.actions.pictures import from_files, from_images, in_8_bits, to_images
from PIL import Image


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_pictures_that_fit_are_not_touched():
    given = images(2, 64, 128, 3)
    pictures = from_images([given], multiple=64, resolution_px=512)
    assert torch.equal(pictures, given.permute(0, 3, 1, 2) * 2 - 1)
    assert torch.allclose(to_images(pictures), given, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(500, 700, (448, 576)), (64, 64, (64, 64)), (2000, 1000, (704, 384)), (10, 30, (64, 64)), (513, 512, (512, 512))],
)
def test_sides_become_multiples_and_large_pictures_smaller(height: int, width: int, expected: tuple[int, int]):
    pictures = from_images([images(1, height, width, 3)], multiple=64, resolution_px=512)
    assert tuple(pictures.shape) == (1, 3, *expected)
    assert pictures.min() >= -1 and pictures.max() <= 1


def test_the_middle_of_a_picture_stays():
    given = torch.zeros(1, 100, 64, 3)
    given[:, 18:82] = 1  # what is left when the edges are gone
    assert (from_images([given], multiple=64, resolution_px=512) == 1).all()


def test_gray_becomes_rgb_and_alpha_is_left_out():
    gray, rgba = images(1, 64, 64, 1), images(1, 64, 64, 4)
    assert torch.equal(
        from_images([gray], multiple=64, resolution_px=64), (gray * 2 - 1).permute(0, 3, 1, 2).expand(1, 3, -1, -1)
    )
    assert torch.equal(
        from_images([rgba], multiple=64, resolution_px=64), from_images([rgba[..., :3]], multiple=64, resolution_px=64)
    )


def test_stacks_of_several_sizes_get_the_size_of_the_first():
    given = [images(2, 64, 128, 3), images(1, 300, 300, 4), torch.ones(1, 32, 256, 1)]
    pictures = from_images(given, multiple=64, resolution_px=512)
    assert tuple(pictures.shape) == (4, 3, 64, 128)
    assert torch.equal(pictures[:2], from_images(given[:1], multiple=64, resolution_px=512))
    assert torch.allclose(pictures[3], torch.ones(3, 64, 128))
    with pytest.raises(ConceptError, match="list of pictures is empty"):
        from_images([], multiple=64, resolution_px=512)


def test_pictures_of_a_node_can_be_learned_from():
    with torch.inference_mode():
        pictures = from_images([images(1, 64, 64, 3)], multiple=64, resolution_px=64)
    assert not pictures.is_inference()


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (64, 64, 3), (1, 64, 64, 2), (1, 0, 64, 3)])
def test_no_pictures_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ConceptError, match=r"at least one picture"):
        from_images([torch.zeros(shape)], multiple=64, resolution_px=64)


def test_files_become_what_load_image_would_give():
    file = Image.new("RGB", (2, 1), (255, 0, 51))
    assert torch.equal(from_files([file]), torch.tensor([[[[1.0, 0.0, 0.2]] * 2]]))


def test_eight_bits_are_what_a_file_holds():
    values = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    assert torch.allclose(in_8_bits(values), values, atol=1e-6)
    assert torch.equal(in_8_bits(values + 0.003), in_8_bits(values))
