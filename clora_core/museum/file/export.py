"""Write plain files for other programs: an ordinary LoRA, and embedding files for the words.

UNets' keys are those of kohya-ss/sd-scripts: networks/lora.py, and its textual inversion trainers (`emb_params` for one
text encoder, `clip_l` and `clip_g` for SDXL's two). `model/families/` has transformers' keys. A1111 and Forge read an
embedding by SDXL's names or as the only tensor of a file, ComfyUI by the encoder's name or as the first tensor,
diffusers by `emb_params`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.nn import functional

from ...errors import MuseumError
from ...model.low_rank import LowRank, truncated
from ...model.projections import Projection
from ..museum import Exhibit, Museum
from .facts import lora_facts
from .files import check_finite, content_hash, errors_about
from .header import header_of
from .layout import factors, vectors
from .names import RESERVED, SUFFIX, why_unusable
from .replacing import write


@dataclass(frozen=True)
class Approximation:
    """The error of a LoRA of lower rank, ‖Δ - nearest‖_F / ‖Δ‖_F: over all projections, and of the worst one."""

    total: float
    worst: float
    worst_path: str


@dataclass(frozen=True)
class Exported:
    """lost: LoRA file → the error of its lower rank. left_out: word → why it was not exported."""

    files: tuple[Path, ...]
    lost: Mapping[Path, Approximation] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def export_lora(
    museum: Museum,
    path: Path | str,
    *,
    rank: int | None = None,
    overwrite: bool = False,
    for_diffusers: bool = False,
) -> Approximation | None:
    """Write all exhibits, each at its own strength, as one LoRA file.

    The words are bundled as `bundle_emb`: A1111 reads them, ComfyUI ignores them, diffusers refuses the file.
    rank: the highest rank to keep per projection; returns the error. for_diffusers: omit the words (export embedding
    files instead), pad every projection to the same rank, since diffusers scales mixed ranks wrongly, and give
    transformers' LoRAs diffusers' own names; raises MuseumError for families whose LoRAs it does not load.
    """
    path = Path(path)
    _check_rank(rank)
    with errors_about(path):
        header = header_of(museum)
        _check_supported([exhibit for exhibit in museum.exhibits if exhibit.gate or not for_diffusers])
        if for_diffusers:
            _check_loader(museum)
        deltas, lost = museum.deltas(), None
        if not deltas:
            raise MuseumError("There is nothing to export: no exhibit of this museum has a delta.")
        if rank is not None:
            deltas, lost = approximated(deltas, rank)
        highest = max(delta.rank for delta in deltas.values())
        if for_diffusers:
            deltas = {projection: _padded(delta, highest) for projection, delta in deltas.items()}
        tensors = factors(deltas, header.family, for_diffusers=for_diffusers)
        for exhibit in () if for_diffusers else museum.exhibits:
            tensors |= vectors(exhibit, header.family)
        check_finite(tensors)
        facts = lora_facts(header, path.stem, content_hash(tensors))
        facts |= {"ss_network_dim": str(highest), "ss_network_alpha": str(float(highest))}
        write(path, tensors, facts, overwrite=overwrite)
        return lost


def export_embeddings(museum: Museum, folder: Path | str, *, overwrite: bool = False) -> list[Path]:
    """Write one embedding file per word, named after the word as far as file systems allow. Returns the files."""
    files = _embedding_files(museum, Path(folder))
    with errors_about(Path(folder)):
        header_of(museum)
        _check_supported(museum.exhibits)
    for exhibit, path in zip(museum.exhibits, files, strict=True):
        vectors = exhibit.token.vectors
        with errors_about(path):
            tensors = {"emb_params" if len(vectors) == 1 else key: v[0].detach().float() for key, v in vectors.items()}
            check_finite(tensors)
            write(path, tensors, {"name": exhibit.word}, overwrite=overwrite)
    return files


def export(
    museum: Museum,
    folder: Path | str,
    *,
    words: Sequence[str] | None = None,
    separate: bool = False,
    rank: int | None = None,
    overwrite: bool = False,
    for_diffusers: bool = False,
) -> Exported:
    """Write `loras/…` and `embeddings/…` under the folder.

    words: the exhibits to export; raises MuseumError for one that other programs cannot show. By default, those are
    left out. separate: write one LoRA per exhibit, named after its word, instead of one file for all. For the
    other options see `export_lora`.
    """
    _check_rank(rank)
    left_out = {e.word: why for e in museum.exhibits if (why := _why_unsupported(e))} if words is None else {}
    museum = museum.only([word for word in museum.words if word not in left_out] if words is None else words)
    if not museum.exhibits:
        raise MuseumError(" ".join(["There is nothing to export: no exhibits were chosen.", *left_out.values()]))
    folder = Path(folder)
    loras, embeddings = folder / "loras", folder / "embeddings"
    stems = file_stems(museum.words) if separate else ["museum"]
    parts = [museum.only([word]) for word in museum.words] if separate else [museum]
    files = {
        loras / f"{stem}{SUFFIX}": part
        for stem, part in zip(stems, parts, strict=True)
        if any(exhibit.deltas for exhibit in part.exhibits)
    }
    existing = [path for path in (*files, *_embedding_files(museum, embeddings)) if path.exists()]
    if existing and not overwrite:
        raise MuseumError(f"'{existing[0]}' already exists. Choose another folder, or allow overwriting.")
    with errors_about(folder):
        _check_supported(museum.exhibits)
        if for_diffusers:
            _check_loader(museum)
        for subfolder in (folder, loras, embeddings):
            subfolder.mkdir(exist_ok=True)
    lost = {
        path: export_lora(part, path, rank=rank, overwrite=overwrite, for_diffusers=for_diffusers)
        for path, part in files.items()
    }
    written = (*files, *export_embeddings(museum, embeddings, overwrite=overwrite))
    return Exported(written, {path: error for path, error in lost.items() if error}, left_out)


def _check_loader(museum: Museum) -> None:
    """Raise MuseumError if diffusers loads no LoRA of this family."""
    family = header_of(museum).family
    paths = [projection.path for exhibit in museum.exhibits for projection in exhibit.deltas]
    if paths and not family.structure.diffusers_keys(paths[0]):
        raise MuseumError(f"diffusers loads no LoRA of {family.title}. Export an ordinary one instead.")


def approximated(deltas: Mapping[Projection, LowRank], rank: int) -> tuple[dict[Projection, LowRank], Approximation]:
    """The nearest delta of at most that rank for each projection, and the error."""
    nearest: dict[Projection, LowRank] = {}
    lost: dict[Projection, float] = {}
    sizes: dict[Projection, float] = {}
    for projection, delta in deltas.items():
        nearest[projection], lost[projection] = truncated(delta, rank)
        sizes[projection] = LowRank(delta.up.double(), delta.down.double()).norm().item()
    shares = {projection: error / sizes[projection] if error else 0.0 for projection, error in lost.items()}
    worst = max(shares, key=lambda projection: shares[projection])
    total = math.hypot(*lost.values()) / (math.hypot(*sizes.values()) or 1.0)
    return nearest, Approximation(total, shares[worst], worst.path)


def file_stems(words: Sequence[str]) -> list[str]:
    """A unique file name without suffix for each word, valid on every file system: <my-cat> → my-cat."""
    stems: list[str] = []
    for word in words:
        plain = RESERVED.sub("_", word.removeprefix("<").removesuffix(">"))
        plain = plain.encode()[:120].decode(errors="ignore").strip(". ") or "word"
        plain = f"{plain}_" if why_unusable(plain) else plain
        used = {stem.casefold() for stem in stems}
        stem, number = plain, 2
        while stem.casefold() in used:
            stem, number = f"{plain}-{number}", number + 1
        stems.append(stem)
    return stems


def _embedding_files(museum: Museum, folder: Path) -> list[Path]:
    return [folder / f"{stem}{SUFFIX}" for stem in file_stems(museum.words)]


def _why_unsupported(exhibit: Exhibit) -> str:
    """Why other programs cannot show this exhibit; empty if they can."""
    if exhibit.token.layers > 1:
        return (
            f"'{exhibit.word}' has {exhibit.token.layers} embeddings, one per layer, which other programs cannot read."
        )
    if exhibit.gate:
        return f"'{exhibit.word}' is word-gated, which other programs cannot show."
    return ""


def _check_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise MuseumError(f"The rank is {rank}; it must be an integer of at least 1.")


def _check_supported(exhibits: Sequence[Exhibit]) -> None:
    for exhibit in exhibits:
        if why := _why_unsupported(exhibit):
            raise MuseumError(f"{why} Export the other exhibits, or view this one from its museum.")


def _padded(delta: LowRank, rank: int) -> LowRank:
    """The same delta with zeros added to that rank."""
    zeros = rank - delta.rank
    return LowRank(functional.pad(delta.up, (0, zeros)), functional.pad(delta.down, (0, 0, 0, zeros)))
