"""Pictures between ComfyUI, (n, h, w, c) in 0..1, and the engine, (n, 3, h, w) in [-1, 1]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...clora_core.errors import ConceptError
from ...clora_core.pictures import to_bytes


def from_files(files: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as a ComfyUI image."""
    return torch.stack([to_bytes(file) for file in files]).permute(0, 2, 3, 1) / 255


def to_images(pictures: Tensor) -> Tensor:
    """The engine's pictures as a ComfyUI image."""
    return ((pictures.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def in_8_bits(pictures: Tensor) -> Tensor:
    """The engine's pictures, rounded to the precision of a picture file."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def from_images(images: Sequence[Tensor], *, multiple: int, resolution_px: int) -> Tensor:
    """ComfyUI images as the engine's pictures, ready for training. images: stacks, each of one size.

    Pictures with more than about resolution_px² pixels are scaled down; edges are cropped until both sides are
    multiples of `multiple`. Every stack gets the size of the first. Alpha is dropped, gray becomes RGB. Raises
    ConceptError if there is no picture.
    """
    check_images(images)
    height, width = images[0].shape[1:3]
    scale = min(1.0, resolution_px / math.sqrt(height * width))
    nearest = [round(side * scale / multiple) for side in (height, width)]
    target = [max(1, min(n, side // multiple)) * multiple for n, side in zip(nearest, (height, width), strict=True)]
    with torch.inference_mode(False):  # other nodes may output inference tensors, which cannot be trained on
        return torch.cat([_covering(pictures_of(stack), *target).clamp(-1, 1) for stack in images]).contiguous()


def check_images(images: Sequence[Tensor]) -> None:
    """Raise ConceptError unless these are ComfyUI images, at least one."""
    for stack in images:
        if stack.ndim != 4 or 0 in stack.shape or stack.shape[-1] not in (1, 3, 4):
            raise ConceptError(
                f"An image has the shape {tuple(stack.shape)}; it must be (count, height, width, 1, 3 or 4 channels), "
                "with at least one picture."
            )
    if not images:
        raise ConceptError("The list of pictures is empty. Connect at least one picture.")


def pictures_of(stack: Tensor) -> Tensor:
    """A ComfyUI image as the engine's pictures of the same size."""
    pictures = stack.detach().to("cpu", torch.float32, copy=True)[..., :3].permute(0, 3, 1, 2)
    return pictures.expand(-1, 3, -1, -1) * 2 - 1


def _covering(pictures: Tensor, height: int, width: int) -> Tensor:
    """The center of the pictures, scaled to just cover height × width."""
    old_height, old_width = pictures.shape[-2:]
    scale = max(height / old_height, width / old_width)
    size = [max(height, round(old_height * scale)), max(width, round(old_width * scale))]
    if size != [old_height, old_width]:
        pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return pictures[..., top : top + height, left : left + width]
