"""Museums between the graph and the disk: what Load Museum and Save Museum do."""

from pathlib import Path

from ..clora_core.errors import MuseumError
from ..clora_core.museum import Museum, wanted
from ..clora_core.storage import load_museum, save_museum
from .host.folders import museum_path, new_museum_path
from .host.model import ModelPatcher
from .host.view import same_museum, view
from .host.words import CLIP


def shown(
    model: ModelPatcher, clip: CLIP, museum: Museum | None, name: str, exhibits: str, strength: float
) -> tuple[ModelPatcher, CLIP, Museum]:
    """The model and the CLIP that show the museum, or else the one of the file, and what they show of it.

    exhibits: one line each, "<my-cat>" or "<my-cat>: 0.8"; none is all of them. strength: times each one's own.
    """
    chosen = wanted([line for line in exhibits.splitlines() if line.strip()])
    if museum is None:
        museum = load_museum(museum_path(name), words=list(chosen) or None)
    elif chosen:
        museum = museum.only(list(chosen))
    strengths = {word: chosen.get(word, 1.0) * strength for word in museum.words}
    return *view(model, clip, museum, strengths), museum


def saved(museum: Museum, name: str, overwrite: bool) -> str:
    """Write the museum and say where. A file that holds this very museum is left as it is."""
    path = new_museum_path(name)
    words = ", ".join(museum.words) or "nothing yet"
    if not overwrite and path.exists() and _holds(path, museum):
        return f"{path} holds this museum already: {words}"
    save_museum(museum, path, overwrite=overwrite)
    return f"{path} now holds: {words}"


def _holds(path: Path, museum: Museum) -> bool:
    try:
        return same_museum(load_museum(path), museum)
    except MuseumError:
        return False
