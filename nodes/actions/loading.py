"""What Load Pictures does."""

from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...clora_core.picture_files import (
    EMPTY_MASK,
    Listing,
    Say,
    caption_of,
    each_picture,
    files_in,
    mask_of,
    mask_values,
    repeated,
    upright,
)
from ...clora_core.texts import counted
from ..host.folders import chosen_pictures, picture_folder
from .pictures import from_files

AREA_PX = 1024 * 1024  # larger pictures are scaled down; no supported model is trained on more
THUMBNAIL_PX = 128


def load_pictures(folder: str, files: str = "") -> tuple[list[Tensor], list[str], list[Tensor], Tensor, str]:
    """ComfyUI images and masks of one picture each, captions ("" for none), thumbnails, and a summary.

    files: only these, one per line, each once; "" for all pictures of the folder, with kohya's repeats.
    """
    notes: list[str] = []
    chosen = chosen_pictures(folder, files)
    root = chosen[0].parent if chosen else picture_folder(folder)
    listing = Listing()
    read = partial(_read, listing=listing)
    found = each_picture(chosen or files_in(root, notes.append), read, notes.append, root=root)
    paths = [path for path, _ in found]
    pictures = [picture for _, (picture, _) in found]
    captions = [caption_of(path, listing) for path in paths]
    thumbnails = [ImageOps.pad(picture, (THUMBNAIL_PX, THUMBNAIL_PX), color="#222") for picture in pictures]
    places = range(len(found)) if chosen else repeated(paths, root)
    with_repeats = f", {len(places)} with repeats" if len(places) > len(found) else ""
    summary = f"{counted(len(found), 'picture')}{with_repeats}, {sum(map(bool, captions))} with a caption"
    images = [from_files([picture]) for picture in pictures]
    return (
        [images[place] for place in places],
        [captions[place] for place in places],
        [found[place][1][1] for place in places],
        from_files(thumbnails),
        "\n".join([summary, *notes]),
    )


def _read(path: Path, note: Say, *, listing: Listing) -> tuple[Image.Image, Tensor]:
    """A picture, and its mask, (1, height, width) in 0..1; zero everywhere if it has none."""
    picture = upright(path, note)
    scale = (AREA_PX / (picture.width * picture.height)) ** 0.5
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = mask_of(path, listing)
    if file is None:
        return picture, torch.zeros(1, picture.height, picture.width)
    mask = mask_values(file, picture.size, picture.size)[None]
    if not mask.any():
        note(EMPTY_MASK)
    return picture, mask
