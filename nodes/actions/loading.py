"""What Load Pictures does."""

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...clora_core.picture_files import (
    Listing,
    Say,
    caption_of,
    each_picture,
    files_in,
    mask_of,
    mask_values,
    upright,
)
from ...clora_core.texts import counted
from ..host.folders import chosen_pictures, picture_folder
from .pictures import from_files

AREA_PX = 1024 * 1024  # larger pictures are scaled down; no supported model is trained on more
THUMBNAIL_PX = 128


def load_pictures(folder: str, files: str = "") -> tuple[list[Tensor], list[str], list[Tensor], Tensor, str]:
    """ComfyUI images and masks of one picture each, captions ("" for none), thumbnails, and a summary.

    files: only these, one per line; "" for all pictures of the folder.
    """
    notes: list[str] = []
    chosen = chosen_pictures(folder, files)
    root = chosen[0].parent if chosen else picture_folder(folder)
    pictures = each_picture(chosen or files_in(root, notes.append), _read, notes.append, root=root)
    listing = Listing()
    captions = [caption_of(path, listing) for path, _ in pictures]
    thumbnails = [ImageOps.pad(picture, (THUMBNAIL_PX, THUMBNAIL_PX), color="#222") for _, picture in pictures]
    with_captions = sum(map(bool, captions))
    summary = f"{counted(len(pictures), 'picture')}, {with_captions} with a caption"
    images = [from_files([picture]) for _, picture in pictures]
    masks = [_mask(mask_of(path, listing), picture) for path, picture in pictures]
    return images, captions, masks, from_files(thumbnails), "\n".join([summary, *notes])


def _read(path: Path, note: Say) -> Image.Image:
    picture = upright(path, note)
    scale = (AREA_PX / (picture.width * picture.height)) ** 0.5
    if scale >= 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _mask(file: Path | None, picture: Image.Image) -> Tensor:
    """The mask of a picture, (1, height, width) in 0..1; zero everywhere if there is no file."""
    return (
        torch.zeros(1, picture.height, picture.width)
        if file is None
        else mask_values(file, picture.size, picture.size)[None]
    )
