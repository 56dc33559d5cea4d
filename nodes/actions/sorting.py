"""What Sort Pictures does."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...clora_core.classification.classify import classified
from ...clora_core.classification.file import load_task_museum
from ...clora_core.classification.vision import open_vision
from ...clora_core.pictures import to_picture
from ..host.folders import museum_path, vision_path
from ..host.memory import device_with_room
from .pictures import check_images, on_white, pictures_of


def sort_pictures(images: Sequence[Tensor], museum_name: str, network: str) -> tuple[str, list[str], list[float]]:
    """A line with the likeliest classes of each picture, the likeliest one, and its share.

    images: ComfyUI images, each a stack of one size. network: "starter", or a folder in models/clip_vision.
    """
    check_images(images)
    museum = load_task_museum(museum_path(museum_name))
    with torch.inference_mode(False):
        base = open_vision(vision_path(network), device=device_with_room())
        prepared = [base.prepared(to_picture(picture)) for stack in images for picture in pictures_of(on_white(stack))]
        verdicts = classified(base, museum, torch.stack(prepared))
    return (
        "\n".join(map(str, verdicts)),
        [verdict.classes[0] for verdict in verdicts],
        [verdict.shares[0] for verdict in verdicts],
    )
