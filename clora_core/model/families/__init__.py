"""The supported model families. To add one, add a file to this folder and its value to `FAMILIES`."""

from collections.abc import Callable, Collection, Iterable, Sequence

from torch import nn

from ...errors import BaseModelError
from ..projections import Projection
from .family import Family
from .sd2 import SD2
from .sd15 import SD15
from .sdxl import SDXL
from .starter import STARTER

FAMILIES: tuple[Family, ...] = (STARTER, SD15, SD2, SDXL)


def projections_in(modules: Iterable[str], shape: Callable[[str], Sequence[int]]) -> dict[Projection, str]:
    """The projections among a network's modules → the names of their modules, sorted. Empty if there are none.

    modules: their names, in any layout that a family knows. shape: module name → the shape of its weight.
    """
    modules, projections = list(modules), {}
    slots = next((slots for family in FAMILIES if (slots := family.structure.find(modules))), {})
    for name, (path, role) in slots.items():
        rows, columns = shape(name)
        projections[Projection(path, role, (rows, columns))] = name
    return dict(sorted(projections.items()))


def find_projections(network: nn.Module) -> dict[Projection, nn.Module]:
    """The projections of a network → their modules.

    Raises BaseModelError if there are none, as in models with joint attention (Flux, SD3).
    """
    modules = dict(network.named_modules())
    names = projections_in(modules, lambda name: modules[name].get_parameter("weight").shape)
    if not names:
        raise BaseModelError(
            f"No cross-attention key/value projections found in {type(network).__name__}. C-LoRA needs a UNet whose "
            "text enters through cross-attention; models with joint attention, such as Flux and SD3, have none. "
            f"Known model families: {', '.join(family.name for family in FAMILIES)}."
        )
    return {projection: modules[name] for projection, name in names.items()}


def family_of(projections: Collection[Projection]) -> Family:
    """The family of all these projections. Raises BaseModelError if there is none."""
    for family in FAMILIES:
        if family.has(projections):
            return family
    widths = sorted({projection.shape[1] for projection in projections})
    supported = ", ".join(f"{family.name} ({family.text_width})" for family in FAMILIES)
    raise BaseModelError(
        f"The cross-attention of this model reads text states of width {widths}. Known model families: {supported}. "
        "docs/developing.md explains how to add a family."
    )


def family_named(name: str) -> Family:
    """The family of that name. Raises BaseModelError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise BaseModelError(f"There is no model family '{name}'. Known: {', '.join(family.name for family in FAMILIES)}.")


def spelled(name: str) -> tuple[str, str] | None:
    """Split a name in another program's LoRA file into the path of a projection and the rest; None if it has none."""
    return next((parts for family in FAMILIES if (parts := family.structure.spelled(name))), None)
