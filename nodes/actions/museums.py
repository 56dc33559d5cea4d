"""What Load Museum, Edit Museum and Save Museum do."""

from pathlib import Path

from torch import Tensor

from ...clora_core.errors import MuseumError
from ...clora_core.museum.editing import edited, merged, with_thumbnail
from ...clora_core.museum.file import load_museum, save_museum
from ...clora_core.museum.museum import Museum, parse_strengths
from ...clora_core.pictures import THUMBNAIL_PX, thumbnail
from ..host.folders import museum_path, new_museum_path
from ..host.model import ModelPatcher
from ..host.progress import waiting
from ..host.view import same_museum, view
from ..host.words import CLIP
from .pictures import from_images


def shown(
    model: ModelPatcher, clip: CLIP, museum: Museum | None, name: str, exhibits: str, strength: float
) -> tuple[ModelPatcher, CLIP, Museum]:
    """The model and the CLIP that show the museum, or else the one of the file, and what they show of it.

    exhibits: one line each, "<my-cat>" or "<my-cat>: 0.8"; none is all of them. strength: times each one's own.
    """
    chosen = parse_strengths([line for line in exhibits.splitlines() if line.strip()])
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
    if path.exists() and _holds(path, museum):
        return f"{path} holds this museum already: {words}"
    save_museum(museum, path, overwrite=overwrite, waiting=waiting)
    return f"{path} now holds: {words}"


def changed(museum: Museum, edits: str, other: Museum | None, images: Tensor | None) -> tuple[Museum, str]:
    """The museum after the edits, one a line, and then with what the other one holds; and what was done, in words.

    images: the host's pictures, of which a line "thumbnail <my-cat> 2" takes the second.
    """
    done = []
    for line in edits.splitlines():
        if line.strip():
            museum, did = _edited(museum, line.strip(), images)
            done.append(did)
    if other is not None:
        museum = merged(museum, other)
    return museum, "\n".join([*done, f"The museum holds: {', '.join(museum.words) or 'nothing'}"])


def _edited(museum: Museum, line: str, images: Tensor | None) -> tuple[Museum, str]:
    match line.split():
        case ["thumbnail", word]:
            return _edited(museum, f"thumbnail {word} 1", images)
        case ["thumbnail", word, number]:
            count = 0 if images is None else len(images)
            if images is None or number not in map(str, range(1, count + 1)):
                raise MuseumError(f"'{line}': {count} images are connected. Connect some, and count them from 1.")
            picture = from_images([images[int(number) - 1 : int(number)]], multiple=1, resolution_px=THUMBNAIL_PX)[0]
            return with_thumbnail(museum, word, thumbnail(picture)), f"'{word}' has another thumbnail now."
    return edited(museum, line)


def _holds(path: Path, museum: Museum) -> bool:
    """Whether the file shows the same and tells the same; when something was learned may differ."""
    try:
        found = load_museum(path)
    except MuseumError:
        return False
    labels = ((each.kind, each.prompt, each.thumbnail) for each in museum.exhibits)
    return same_museum(found, museum) and [(e.kind, e.prompt, e.thumbnail) for e in found.exhibits] == list(labels)
