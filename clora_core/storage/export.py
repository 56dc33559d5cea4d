"""Plain files for other programs: an ordinary LoRA, and embedding files for the words."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import MuseumError
from ..museum import Exhibit, Museum
from .facts import lora_facts
from .files import SUFFIX, Existing, content_hash, errors_about, write
from .header import header_of
from .layout import check_finite, factors, vectors

WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


def export_lora(museum: Museum, path: Path | str, *, overwrite: bool = False, for_diffusers: bool = False) -> None:
    """All exhibits as one LoRA file.

    The words come along as `bundle_emb`: A1111 reads them, ComfyUI passes over them, diffusers refuses the file.
    for_diffusers: without them, and every projection filled up with zeros to the same rank, since diffusers scales a
    file of different ranks wrongly. Its words are the embedding files.
    """
    path = Path(path)
    with errors_about(path):
        header = header_of(museum)
        tensors = factors(museum, header.architecture, evenly=for_diffusers)
        if not for_diffusers:
            for exhibit in museum.exhibits:
                _check_single_layer(exhibit)
                tensors |= vectors(exhibit, header.architecture)
        if not tensors:
            raise MuseumError("There is nothing to export: no exhibit of this museum has a delta.")
        check_finite(tensors)
        write(path, tensors, lora_facts(museum, path.stem, content_hash(tensors)), existing=_existing(overwrite))


def export_embeddings(museum: Museum, folder: Path | str, *, overwrite: bool = False) -> list[Path]:
    """One embedding file per word, named after it, as far as file systems allow."""
    files = embedding_files(museum, Path(folder))
    with errors_about(Path(folder)):
        header_of(museum)
        for exhibit in museum.exhibits:
            _check_single_layer(exhibit)
    for exhibit, path in zip(museum.exhibits, files, strict=True):
        with errors_about(path):
            tensors = _embedding(exhibit)
            check_finite(tensors)
            write(path, tensors, {"name": exhibit.word}, existing=_existing(overwrite))
    return files


def export(
    museum: Museum,
    folder: Path | str,
    *,
    words: Sequence[str] | None = None,
    separate: bool = False,
    name: str = "museum",
    overwrite: bool = False,
    for_diffusers: bool = False,
) -> list[Path]:
    """Write `loras/…` and `embeddings/…` under the folder, and say which files these are.

    words: only these exhibits. separate: a LoRA per exhibit, named after its word; else one of all, called `name`.
    """
    museum = museum if words is None else museum.only(words)
    if not museum.exhibits:
        raise MuseumError("There is nothing to export: no exhibits were chosen.")
    folder = Path(folder)
    loras, embeddings = folder / "loras", folder / "embeddings"
    parts = [museum.only([word]) for word in museum.words] if separate else [museum]
    stems = file_stems(museum.words) if separate else [name]
    files = [loras / f"{stem}{SUFFIX}" for stem in stems]
    taken = [path for path in (*files, *embedding_files(museum, embeddings)) if path.exists()]
    if taken and not overwrite:
        raise MuseumError(f"'{taken[0]}' exists already. Choose another folder, or ask to overwrite it.")
    with errors_about(folder):
        for exhibit in museum.exhibits:
            _check_single_layer(exhibit)
        for place in (folder, loras, embeddings):
            place.mkdir(exist_ok=True)
    for part, path in zip(parts, files, strict=True):
        export_lora(part, path, overwrite=overwrite, for_diffusers=for_diffusers)
    return files + export_embeddings(museum, embeddings, overwrite=overwrite)


def embedding_files(museum: Museum, folder: Path) -> list[Path]:
    """Where `export_embeddings` writes."""
    return [folder / f"{stem}{SUFFIX}" for stem in file_stems(museum.words)]


def file_stems(words: Sequence[str]) -> list[str]:
    """A different name for each word that every file system takes: <my-cat> → my-cat."""
    stems: list[str] = []
    for word in words:
        plain = re.sub(r'[<>:"/\\|?*]', "_", word.removeprefix("<").removesuffix(">"))
        plain = plain.encode()[:120].decode(errors="ignore").strip(". ") or "word"
        plain = f"{plain}_" if WINDOWS_DEVICE.fullmatch(plain) else plain
        used = {stem.casefold() for stem in stems}
        stem, number = plain, 2
        while stem.casefold() in used:
            stem, number = f"{plain}-{number}", number + 1
        stems.append(stem)
    return stems


def _embedding(exhibit: Exhibit) -> dict[str, Tensor]:
    """SDXL's two encoders by their names; a single encoder's vectors as A1111's trainer calls them."""
    single = len(exhibit.token.vectors) == 1
    return {"emb_params" if single else name: v[0].detach().float() for name, v in exhibit.token.vectors.items()}


def _check_single_layer(exhibit: Exhibit) -> None:
    layers = next(iter(exhibit.token.vectors.values())).shape[0]
    if layers > 1:
        raise MuseumError(
            f"'{exhibit.word}' has {layers} embeddings, one per layer, which other programs cannot read. "
            "Export the other exhibits, or view this one from its museum."
        )


def _existing(overwrite: bool) -> Existing:
    return "keep beside" if overwrite else "refuse"
