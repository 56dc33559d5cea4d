"""The families of models that can be taught. A new one is one file beside this one, and its value in `FAMILIES`."""

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
    """The projections among a network's modules, in order of path → the module's name. Empty if there are none.

    modules: their names, in any layout that a family knows. shape: of the weight of the module with that name.
    """
    modules, found = list(modules), {}
    slots = next((slots for family in FAMILIES if (slots := family.structure.find(modules))), {})
    for name, (path, role) in slots.items():
        rows, columns = shape(name)
        found[Projection(path, role, (rows, columns))] = name
    return dict(sorted(found.items()))


def find_projections(network: nn.Module) -> dict[Projection, nn.Module]:
    """The same of a network: projection → its module.

    Raises BaseModelError where there are none, as in models of joint attention (Flux, SD3).
    """
    modules = dict(network.named_modules())
    found = projections_in(modules, lambda name: modules[name].get_parameter("weight").shape)
    if not found:
        raise BaseModelError(
            f"No cross-attention key/value projections found in {type(network).__name__}. C-LoRA needs a UNet whose "
            "text enters by a cross-attention of its own; models of joint attention, such as Flux and SD3, have none. "
            f"Known model families: {', '.join(family.name for family in FAMILIES)}."
        )
    return {projection: modules[name] for projection, name in found.items()}


def family_of(projections: Collection[Projection]) -> Family:
    """The family that all these projections belong to. Raises BaseModelError if there is none."""
    for family in FAMILIES:
        if family.has(projections):
            return family
    widths = sorted({projection.shape[1] for projection in projections})
    known = ", ".join(f"{family.name} ({family.text_width})" for family in FAMILIES)
    raise BaseModelError(
        f"The cross-attention of this model reads text states of width {widths}. Known model families: {known}. "
        "docs/developing.md says how to add a family."
    )


def family_named(name: str) -> Family:
    """The family of that name. Raises BaseModelError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise BaseModelError(f"There is no model family '{name}'. Known: {known}.")


def spelled(name: str) -> tuple[str, str] | None:
    """The path of a projection that a name in others' LoRA files begins with, and the rest; None if there is none."""
    return next((found for family in FAMILIES if (found := family.structure.spelled(name))), None)
