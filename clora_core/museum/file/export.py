"""Plain files for other programs: an ordinary LoRA, and embedding files for the words.

Their keys are those of kohya-ss/sd-scripts: of networks/lora.py, and of its trainers of textual inversion, `emb_params`
for one text encoder and `clip_l`, `clip_g` for SDXL's two. A1111 and Forge read embeddings by SDXL's names or as the
only tensor of a file, ComfyUI by the encoder's name or as the first tensor, diffusers by `emb_params`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from ...errors import MuseumError
from ...model.low_rank import LowRank, truncated
from ...model.projections import Projection
from ..museum import Exhibit, Museum
from .facts import lora_facts
from .files import check_finite, content_hash, errors_about
from .header import header_of
from .layout import factors, vectors
from .names import SUFFIX, why_unusable
from .replacing import Existing, write


@dataclass(frozen=True)
class Approximation:
    """What a LoRA of lower rank lost, as ‖Δ - nearest‖_F / ‖Δ‖_F: of all projections together, and of the worst one."""

    total: float
    worst: float
    worst_path: str


@dataclass(frozen=True)
class Exported:
    """What was written, what each LoRA file lost where a rank was asked for, and which words were left out, and why."""

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
    """All exhibits as one LoRA file, each at its own strength.

    The words come along as `bundle_emb`: A1111 reads them, ComfyUI passes over them, diffusers refuses the file.
    rank: the most that any projection keeps; what that loses is returned. for_diffusers: without the words, and every
    projection filled up with zeros to the same rank, since diffusers scales a file of different ranks wrongly. Its
    words are the embedding files.
    """
    path = Path(path)
    _check_rank(rank)
    with errors_about(path):
        header = header_of(museum)
        for exhibit in museum.exhibits:
            if exhibit.gate or not for_diffusers:
                _check_speakable(exhibit)
        deltas, lost = museum.deltas(), None
        if not deltas:
            raise MuseumError("There is nothing to export: no exhibit of this museum has a delta.")
        if rank is not None:
            deltas, lost = approximated(deltas, rank)
        if for_diffusers:
            deltas = _of_one_rank(deltas)
        tensors = factors(deltas, header.family)
        if not for_diffusers:
            for exhibit in museum.exhibits:
                tensors |= vectors(exhibit, header.family)
        check_finite(tensors)
        kept = max(delta.rank for delta in deltas.values())
        facts = lora_facts(header, path.stem, content_hash(tensors))
        facts |= {"ss_network_dim": str(kept), "ss_network_alpha": str(float(kept))}
        write(path, tensors, facts, existing=_existing(overwrite))
        return lost


def export_embeddings(museum: Museum, folder: Path | str, *, overwrite: bool = False) -> list[Path]:
    """One embedding file per word, named after it, as far as file systems allow."""
    files = embedding_files(museum, Path(folder))
    with errors_about(Path(folder)):
        header_of(museum)
        for exhibit in museum.exhibits:
            _check_speakable(exhibit)
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
    rank: int | None = None,
    overwrite: bool = False,
    for_diffusers: bool = False,
) -> Exported:
    """Write `loras/…` and `embeddings/…` under the folder.

    words: only these exhibits; raises MuseumError for one that other programs cannot speak. Without words, those are
    left out. separate: a LoRA per exhibit, named after its word; else one of all, called `name`. The other options are
    those of `export_lora`.
    """
    _check_rank(rank)
    left_out = {e.word: why for e in museum.exhibits if (why := unspeakable(e))} if words is None else {}
    museum = museum.only([word for word in museum.words if word not in left_out] if words is None else words)
    if not museum.exhibits:
        raise MuseumError(" ".join(["There is nothing to export: no exhibits were chosen.", *left_out.values()]))
    folder = Path(folder)
    loras, embeddings = folder / "loras", folder / "embeddings"
    stems = file_stems(museum.words) if separate else [name]
    parts = [museum.only([word]) for word in museum.words] if separate else [museum]
    files = {loras / f"{stem}{SUFFIX}": part for stem, part in zip(stems, parts, strict=True) if _moves(part)}
    taken = [path for path in (*files, *embedding_files(museum, embeddings)) if path.exists()]
    if taken and not overwrite:
        raise MuseumError(f"'{taken[0]}' exists already. Choose another folder, or ask to overwrite it.")
    with errors_about(folder):
        for exhibit in museum.exhibits:
            _check_speakable(exhibit)
        for place in (folder, loras, embeddings):
            place.mkdir(exist_ok=True)
    lost = {
        path: export_lora(part, path, rank=rank, overwrite=overwrite, for_diffusers=for_diffusers)
        for path, part in files.items()
    }
    written = (*files, *export_embeddings(museum, embeddings, overwrite=overwrite))
    return Exported(written, {path: error for path, error in lost.items() if error}, left_out)


def approximated(deltas: Mapping[Projection, LowRank], rank: int) -> tuple[dict[Projection, LowRank], Approximation]:
    """Each delta as the nearest of at most that rank, and what that loses."""
    nearest = {projection: truncated(delta, rank) for projection, delta in deltas.items()}
    lost = {projection: error for projection, (_, error) in nearest.items()}
    sizes = {projection: _norm(delta) for projection, delta in deltas.items()}
    shares = {projection: error / sizes[projection] if error else 0.0 for projection, error in lost.items()}
    worst = max(shares, key=lambda projection: shares[projection])
    total = _length(lost.values()) / (_length(sizes.values()) or 1.0)
    kept = {projection: delta for projection, (delta, _) in nearest.items()}
    return kept, Approximation(total, shares[worst], worst.path)


def unspeakable(exhibit: Exhibit) -> str:
    """Why other programs cannot show this exhibit; empty if they can."""
    layers = next(iter(exhibit.token.vectors.values())).shape[0]
    if layers > 1:
        return f"'{exhibit.word}' has {layers} embeddings, one per layer, which other programs cannot read."
    if exhibit.gate:
        return f"'{exhibit.word}' acts at its word only, which other programs cannot do."
    return ""


def embedding_files(museum: Museum, folder: Path) -> list[Path]:
    """Where `export_embeddings` writes."""
    return [folder / f"{stem}{SUFFIX}" for stem in file_stems(museum.words)]


def file_stems(words: Sequence[str]) -> list[str]:
    """A different name for each word that every file system takes: <my-cat> → my-cat."""
    stems: list[str] = []
    for word in words:
        plain = re.sub(r'[<>:"/\\|?*]', "_", word.removeprefix("<").removesuffix(">"))
        plain = plain.encode()[:120].decode(errors="ignore").strip(". ") or "word"
        plain = f"{plain}_" if why_unusable(plain) else plain
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


def _check_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise MuseumError(f"The rank is {rank}; it must be a whole number from 1.")


def _check_speakable(exhibit: Exhibit) -> None:
    if why := unspeakable(exhibit):
        raise MuseumError(f"{why} Export the other exhibits, or view this one from its museum.")


def _of_one_rank(deltas: Mapping[Projection, LowRank]) -> dict[Projection, LowRank]:
    most = max((delta.rank for delta in deltas.values()), default=0)
    return {
        projection: LowRank(
            functional.pad(delta.up, (0, most - delta.rank)), functional.pad(delta.down, (0, 0, 0, most - delta.rank))
        )
        for projection, delta in deltas.items()
    }


def _norm(delta: LowRank) -> float:
    return LowRank(delta.up.double(), delta.down.double()).norm().item()


def _length(parts: Iterable[float]) -> float:
    return sum(part**2 for part in parts) ** 0.5


def _moves(museum: Museum) -> bool:
    return any(exhibit.deltas for exhibit in museum.exhibits)


def _existing(overwrite: bool) -> Existing:
    return "keep beside" if overwrite else "refuse"
