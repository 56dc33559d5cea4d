"""Pictures between ComfyUI, (n, h, w, c) in 0..1, and the engine, (n, 3, h, w) in [-1, 1]."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...clora_core.errors import ConceptError
from ...clora_core.pictures import Picture, Size, bucket, covering, to_bytes


def from_files(files: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as a ComfyUI image."""
    return torch.stack([to_bytes(file) for file in files]).permute(0, 2, 3, 1) / 255


def to_images(pictures: Tensor) -> Tensor:
    """The engine's pictures as a ComfyUI image."""
    return ((pictures.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def in_8_bits(pictures: Tensor) -> Tensor:
    """The engine's pictures, rounded to the precision of a picture file."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def from_images(
    images: Sequence[Tensor], masks: Sequence[Tensor] = (), *, multiple: int, resolution_px: int
) -> list[Picture]:
    """ComfyUI images as pictures to train on. images: stacks, each of one size. masks: one per picture, or none.

    Every picture keeps its shape, as far as multiples of `multiple` allow. All get the area of the largest one, and at
    most about resolution_px² pixels. Alpha is dropped, gray becomes RGB. Raises ConceptError if there is no picture.
    """
    check_images(images)
    area = min(resolution_px**2, max(stack.shape[1] * stack.shape[2] for stack in images))
    flat = [mask for stack in masks for mask in stack.reshape(-1, *stack.shape[-2:])]
    if flat and len(flat) != (count := sum(map(len, images))):
        raise ConceptError(f"There are {len(flat)} masks for {count} pictures. Connect one mask per picture, or none.")
    prepared = []
    for stack in images:
        size = int(stack.shape[1]), int(stack.shape[2])
        target = bucket(size, area_px=area, multiple=multiple)
        scaled, crop = covering(size, target)
        for image in stack:
            read_mask = partial(_fitted_mask, flat[len(prepared)], size, target, scaled, crop) if flat else None
            prepared.append(Picture.of(partial(_fitted, image, target, scaled, crop), size, crop, read_mask))
    return prepared


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


def on_white(stack: Tensor) -> Tensor:
    """A ComfyUI image without transparency: what is transparent becomes white, as in picture files."""
    if stack.shape[-1] < 4:
        return stack
    colors, alpha = stack[..., :3], stack[..., 3:]
    return colors * alpha + 1 - alpha


def pictures_of(stack: Tensor) -> Tensor:
    """A ComfyUI image as the engine's pictures of the same size."""
    pictures = stack.detach().to("cpu", torch.float32, copy=True)[..., :3].permute(0, 3, 1, 2)
    return pictures.expand(-1, 3, -1, -1) * 2 - 1


def _fitted(image: Tensor, target: Size, scaled: Size, crop: tuple[int, int]) -> Tensor:
    """A ComfyUI image (h, w, c), scaled and cropped: (3, *target) in [-1, 1]."""
    with torch.inference_mode(False):  # other nodes may output inference tensors, which cannot be trained on
        return _resized(pictures_of(image[None]), (scaled,), target, crop, "bicubic")[0].clamp(-1, 1).contiguous()


def _fitted_mask(mask: Tensor, size: Size, target: Size, scaled: Size, crop: tuple[int, int]) -> Tensor:
    """A ComfyUI mask of any size, stretched to the picture's, then scaled and cropped with it: `target` in [0, 1]."""
    with torch.inference_mode(False):
        values = mask.detach().to("cpu", torch.float32, copy=True)[None, None]
        return _resized(values, (size, scaled), target, crop, "bilinear")[0, 0].clamp(0, 1).contiguous()


def _resized(values: Tensor, sizes: Sequence[Size], target: Size, crop: tuple[int, int], mode: str) -> Tensor:
    """Scaled to each of these sizes in turn, where it has another one, and then cropped to the target."""
    for size in sizes:
        if values.shape[-2:] != size:
            values = F.interpolate(values, size, mode=mode, antialias=True)
    (top, left), (height, width) = crop, target
    return values[..., top : top + height, left : left + width]
