"""The supported model families. To add one, add a file to this folder and its value to `FAMILIES`."""

from collections.abc import Callable, Collection, Iterable, Sequence

from torch import nn

from ...errors import BaseModelError
from ..projections import Place, Projection, Role, Slot
from .cosmos import ANIMA, COSMOS
from .family import Family
from .flux import CHROMA, FLUX, KLEIN_4B, KLEIN_9B
from .hunyuan_dit import HUNYUAN_DIT
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sd2 import SD2
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .starter import STARTER
from .wan import WAN
from .z_image import Z_IMAGE

FAMILIES: tuple[Family, ...] = (
    *(STARTER, SD15, SD2, SDXL),
    *(COSMOS, ANIMA, PIXART, HUNYUAN_DIT, WAN),
    *(FLUX, KLEIN_4B, KLEIN_9B, CHROMA, SD3, QWEN_IMAGE),
    Z_IMAGE,
)


def projections_in(modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, Place]:
    """The projections among a network's modules → where they are, sorted. Empty if there are none.

    modules: their names, in any layout that a family knows. shape: module name → the shape of its weight.
    """
    modules = list(modules)
    places = next((places for family in FAMILIES if (places := family.structure.find(modules, shape))), {})
    return dict(sorted(places.items()))


def find_projections(network: nn.Module) -> dict[Projection, Slot]:
    """The projections of a network → their slots.

    Raises BaseModelError if there are none, as in models where text and picture share all projections.
    """
    modules = dict(network.named_modules())
    places = projections_in(modules, lambda name: modules[name].get_parameter("weight").shape)
    if not places:
        raise BaseModelError(
            f"No key and value projections of text found in {type(network).__name__}. C-LoRA needs a model whose text "
            "has keys and values of its own, or shares as many with the picture as there are queries. Known model "
            f"families: {', '.join(family.name for family in FAMILIES)}."
        )
    return {
        projection: Slot(modules[place.module], place.first_row, projection.shape[0])
        for projection, place in places.items()
    }


def recognized(network: nn.Module) -> tuple[Family, dict[Projection, Slot]]:
    """The family of a network, and its projections → their slots. Raises BaseModelError for other networks."""
    slots = find_projections(network)
    return family_with(slots, {name for name, _ in network.named_modules()}), slots


def family_with(projections: Collection[Projection], modules: Collection[str]) -> Family:
    """The family of all these projections. Raises BaseModelError if there is none.

    modules: the names of the network's modules, which tell families with equal projections apart.
    """
    if family := next((family for family in families_with(projections) if family.marked(modules)), None):
        return family
    raise _unknown(projections)


def families_with(projections: Collection[Projection]) -> list[Family]:
    """The families that can have all these projections. Raises BaseModelError if there is none."""
    if found := [family for family in FAMILIES if family.has(projections)]:
        return found
    raise _unknown(projections)


def _unknown(projections: Collection[Projection]) -> BaseModelError:
    widths = sorted({projection.shape[1] for projection in projections})
    supported = ", ".join(f"{family.name} ({family.text_width})" for family in FAMILIES)
    return BaseModelError(
        f"This model does not belong to a known family. It has {len(projections)} key and value projections, such as "
        f"'{next(iter(projections)).path}', which read a width of {widths}. Known model families, with the width of "
        f"their text: {supported}. In the repository, docs/developing.md "
        "explains how to add a family."
    )


def family_named(name: str) -> Family:
    """The family of that name. Raises BaseModelError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise BaseModelError(f"There is no model family '{name}'. Known: {', '.join(family.name for family in FAMILIES)}.")


def role(path: str) -> Role:
    """The role of the projection with that path, which some family has."""
    return next(role for family in FAMILIES if (role := family.structure.role(path)))


def spelled(name: str) -> tuple[str, str] | None:
    """Split a name in another program's LoRA file into the path of a projection and the rest; None if it has none."""
    return next((parts for family in FAMILIES if (parts := family.structure.spelled(name))), None)
