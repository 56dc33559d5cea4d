"""What Load Museum, Edit Museum and Save Museum do."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...clora_core.errors import MuseumError
from ...clora_core.museum.editing import edited, merged, with_thumbnail, with_thumbnails_of
from ...clora_core.museum.file import load_museum, read_header, save_museum
from ...clora_core.museum.file.files import identity
from ...clora_core.museum.museum import Museum, missing_partners, parse_strengths
from ...clora_core.pictures import thumbnail
from ..host.folders import museum_path, new_museum_path, short
from ..host.model import ModelPatcher
from ..host.progress import say, waiting, warn
from ..host.view import note_about, same_museum, view
from ..host.words import CLIP
from .pictures import check_images, pictures_of

WORDS_SAID = 8  # of a saved museum, at most


def load_and_view(
    model: ModelPatcher,
    clip: CLIP,
    museum: Museum | None,
    name: str,
    exhibits: str,
    strength: float,
    keep_apart: bool = False,
) -> tuple[ModelPatcher, CLIP, Museum]:
    """The model and the CLIP with the chosen exhibits, and these exhibits as a museum.

    museum: if None, the file of that name. exhibits: one per line, "<my-cat>" or "<my-cat>: 0.8"; empty for all.
    strength: multiplies all strengths. keep_apart: see `view`.
    """
    chosen = parse_strengths([line for line in exhibits.splitlines() if line.strip()])
    if museum is None:
        path = museum_path(name)
        whole = read_header(path).exhibits if chosen else ()
        museum = load_museum(path, words=list(chosen) or None)
    else:
        whole = museum.exhibits
        museum = museum.only(list(chosen)) if chosen else museum
    if note := " ".join(filter(None, (note_about(model, museum), missing_partners(whole, museum.words)))):
        warn(note)
    strengths = {word: chosen.get(word, 1.0) * strength for word in museum.words}
    return *view(model, clip, museum, strengths, keep_apart=keep_apart), museum


def save(museum: Museum, name: str, overwrite: bool, replace: bool = False) -> str:
    """Write the museum, and return a message with its path. A file with the same museum is left alone.

    overwrite: replace a file if the museum begins with what it holds; thumbnails that were replaced in the file stay.
    replace: whatever it holds.
    """
    path = new_museum_path(name)
    read = identity(path) if path.exists() else None
    stored = _stored(path) if read else None
    begun = stored is not None and museum.begins_with(stored)
    if stored and begun and not replace:
        museum = with_thumbnails_of(museum, stored)
    if stored and _same_file(stored, museum):
        return _said("{} already contains this museum: {}", path, museum)
    if read and not overwrite and not replace:
        raise MuseumError(
            f"{path.name} already exists. Choose another name, or turn on overwrite, and press Run again: what Train "
            "Steps have stored is not trained again."
        )
    if read and not replace and not begun:
        if stored and stored.begins_with(museum):
            return _said("{} already contains these and more (turn on replace to keep only these): {}", path, museum)
        raise MuseumError(
            f"{_difference(path.name, stored, museum)} Choose another name, or turn on replace to replace it anyway; "
            "the old file is then kept as ….backup."
        )
    del stored  # a large museum is not held twice while it is written
    save_museum(museum, path, overwrite=overwrite or replace, read=read, waiting=waiting)
    return _said("Saved {}: {}", path, museum)


def _difference(name: str, stored: Museum | None, museum: Museum) -> str:
    """Why the museum does not begin with what the file holds, as one sentence."""
    if stored is None:
        return f"{name} holds something that cannot be read."
    both = [word for word in stored.words if word in museum.words]
    if others := [word for word in both if not stored.exhibit(word).same_as(museum.exhibit(word))]:
        return f"{name} holds another version of {', '.join(others)} (of other pictures, settings or strength)."
    return f"{name} holds {_words(stored)}; the new museum ({_words(museum)}) does not begin with these same exhibits."


def _said(message: str, path: Path, museum: Museum) -> str:
    """The message with path and words, shown on the node; its panel shows the first words only."""
    first, more = ", ".join(museum.words[:WORDS_SAID]), len(museum.words) - WORDS_SAID
    some = f"{first} and {more} more" if more > 0 else _words(museum)
    return say(message.format(path, _words(museum)), short=message.format(short(path), some))


def _words(museum: Museum) -> str:
    return ", ".join(museum.words) or "no exhibits"


def edit(museum: Museum, edits: str, other: Museum | None, images: Sequence[Tensor]) -> tuple[Museum, str]:
    """The museum after the edits, one per line, merged with the other one; and a summary.

    images: ComfyUI's stacks of pictures; a line "thumbnail <my-cat> 2" uses the second of all pictures.
    """
    if images:
        check_images(images)
    pictures, messages = [stack[place : place + 1] for stack in images for place in range(len(stack))], []
    for line in edits.splitlines():
        if line.strip():
            museum, message = _edit(museum, line.strip(), pictures)
            messages.append(message)
    if other is not None:
        museum = merged(museum, other)
    return museum, "\n".join([*messages, f"The museum contains: {', '.join(museum.words) or 'nothing'}"])


def _edit(museum: Museum, line: str, pictures: Sequence[Tensor]) -> tuple[Museum, str]:
    match line.split():
        case ["thumbnail", word]:
            return _edit(museum, f"thumbnail {word} 1", pictures)
        case ["thumbnail", word, number]:
            if number not in map(str, range(1, len(pictures) + 1)):
                raise MuseumError(
                    f"'{line}': {len(pictures)} images are connected. Connect images; the first is number 1."
                )
            picture = pictures_of(pictures[int(number) - 1])[0]
            return with_thumbnail(museum, word, thumbnail(picture)), f"'{word}' has a new thumbnail."
    return edited(museum, line)


def _stored(path: Path) -> Museum | None:
    """What the file holds; None if it cannot be read."""
    try:
        return load_museum(path)
    except MuseumError:
        return None


def _same_file(stored: Museum, museum: Museum) -> bool:
    """Whether the museums have the same exhibits with the same labels; their dates may differ."""
    return same_museum(stored, museum) and all(
        (old.kind, old.prompt, old.thumbnail) == (new.kind, new.prompt, new.thumbnail)
        for old, new in zip(stored.exhibits, museum.exhibits, strict=True)
    )
