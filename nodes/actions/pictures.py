"""Pictures between the host, (n, h, w, c) in 0..1, and the engine, (n, 3, h, w) in [-1, 1]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...clora_core.errors import ConceptError
from ...clora_core.pictures import to_bytes


def from_files(files: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as the host's tensor."""
    return torch.stack([to_bytes(file) for file in files]).permute(0, 2, 3, 1) / 255


def to_images(pictures: Tensor) -> Tensor:
    """The engine's pictures as the host's."""
    return ((pictures.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def in_8_bits(pictures: Tensor) -> Tensor:
    """The engine's pictures, rounded to what a picture file holds."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def from_images(images: Sequence[Tensor], *, multiple: int, resolution_px: int) -> Tensor:
    """The host's pictures as the engine's, ready to learn from. images: stacks of pictures, of one size each.

    Those with more pixels than resolution_px² are made smaller, to about as many; sides become multiples of `multiple`,
    for which edges are cut off. Stacks of other sizes get that of the first. Alpha is left out, gray becomes RGB.
    Raises ConceptError where there is no picture.
    """
    for stack in images:
        if stack.ndim != 4 or 0 in stack.shape or stack.shape[-1] not in (1, 3, 4):
            raise ConceptError(f"These are no pictures: (count, height, width, colors) is {tuple(stack.shape)}.")
    if not images:
        raise ConceptError("There are no pictures: the list is empty.")
    height, width = images[0].shape[1:3]
    smaller = min(1.0, resolution_px / math.sqrt(height * width))
    nearest = [round(side * smaller / multiple) for side in (height, width)]
    target = [max(1, min(n, side // multiple)) * multiple for n, side in zip(nearest, (height, width), strict=True)]
    with torch.inference_mode(False):  # what other nodes made may be inference tensors, which cannot be learned from
        return torch.cat([_covering(_pictures(stack), *target).clamp(-1, 1) for stack in images]).contiguous()


def _pictures(stack: Tensor) -> Tensor:
    pictures = stack.detach().to("cpu", torch.float32, copy=True)[..., :3].permute(0, 3, 1, 2)
    return pictures.expand(-1, 3, -1, -1) * 2 - 1


def _covering(pictures: Tensor, height: int, width: int) -> Tensor:
    """The middle of the pictures, scaled as little as it takes to cover height × width."""
    old_height, old_width = pictures.shape[-2:]
    scale = max(height / old_height, width / old_width)
    size = [max(height, round(old_height * scale)), max(width, round(old_width * scale))]
    if size != [old_height, old_width]:
        pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return pictures[..., top : top + height, left : left + width]
