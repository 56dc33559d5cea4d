"""The names and shapes of the tensors in a museum file.

    lora_unet_….lora_up.weight (out, R)   .lora_down.weight (R, in)   .alpha = R

hold the rank rows of all exhibits in order, R = Σ ranks: ΔW = alpha/R · up @ down is exactly the sum of all deltas.
These are the keys of kohya's trainer, which ComfyUI, A1111 and Forge read. A word uses the `bundle_emb` keys that
OneTrainer writes and A1111 reads.

What ordinary loaders have no name for uses keys of our own (`clora.token.…`, `clora.up.…`, `clora.down.…`): a word with
an embedding per layer, and the word and factors of an exhibit that acts at its word only. If an exhibit's strength is
not 1, the sum holds its `up` times the strength, so that every loader shows it the same way. Its original `up` is
stored under `clora.up.…`, so that nothing is rounded, or lost at strength 0.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...errors import MuseumError
from ...model.families.family import Family, ordinary_keys
from ...model.low_rank import LowRank
from ...model.projections import Projection
from ..museum import Exhibit
from .header import ExhibitHeader, Header
from .joined import Joined, Rows

Pieces = Mapping[Projection, Sequence[tuple[Rows, Rows]]]  # up (out, rank) and down (rank, in) of each exhibit


def factor_keys(projection: Projection, family: Family) -> tuple[str, str, str]:
    """The names of up, down and alpha."""
    return ordinary_keys(family.lora_key(projection))


def own_keys(word: str, projection: Projection, family: Family) -> tuple[str, str]:
    """The names of an exhibit's own `up` and `down`, for exhibits whose factors differ from those in the sum."""
    stem = f"{word}.{family.lora_key(projection)}"
    return f"clora.up.{stem}", f"clora.down.{stem}"


def vector_keys(word: str, ordinary: bool, family: Family) -> dict[str, str]:
    """encoder → the name of the word's vectors: (words, width), or (layers, words, width) if not ordinary."""
    if not ordinary:
        return {encoder: f"clora.token.{word}.{encoder}" for encoder in family.encoders}
    if len(family.encoders) == 1:
        return dict.fromkeys(family.encoders, f"bundle_emb.{word}.string_to_param.*")
    return {encoder: f"bundle_emb.{word}.{encoder}" for encoder in family.encoders}


def rank_rows(header: Header, words: Collection[str]) -> dict[str, dict[Projection, slice]]:
    """word → projection → the exhibit's rank rows in the sum, for these words, in the museum's order."""
    filled = dict.fromkeys(header.projections, 0)
    rows: dict[str, dict[Projection, slice]] = {}
    for exhibit in _summed(header):
        if exhibit.word in words:
            rows[exhibit.word] = {p: slice(filled[p], filled[p] + rank) for p, rank in exhibit.ranks.items()}
        for projection, rank in exhibit.ranks.items():
            filled[projection] += rank
    return rows


def rank_scales(header: Header, strengths: Mapping[str, float]) -> dict[Projection, Tensor]:
    """projection → (R,): the strength of each rank row's exhibit, 0 for exhibits without a strength."""
    scales: dict[Projection, list[float]] = {projection: [] for projection, _ in header.total_ranks()}
    for exhibit in _summed(header):
        for projection, rank in exhibit.ranks.items():
            scales[projection] += [strengths.get(exhibit.word, 0.0)] * rank
    return {projection: torch.tensor(scale) for projection, scale in scales.items()}


def shapes(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor in a museum file with this header, each name once."""
    family = header.family
    for projection, rank in header.total_ranks():
        up, down, alpha = factor_keys(projection, family)
        rows, columns = projection.shape
        yield from ((up, (rows, rank)), (down, (rank, columns)), (alpha, ()))
    for exhibit in header.exhibits:
        layers = () if exhibit.ordinary else (exhibit.layers,)
        for encoder, key in vector_keys(exhibit.name, exhibit.ordinary, family).items():
            yield key, (*layers, exhibit.words, family.encoders[encoder])
        for projection, rank in () if exhibit.everywhere and exhibit.strength == 1 else exhibit.ranks.items():
            up, down = own_keys(exhibit.name, projection, family)
            yield up, (projection.shape[0], rank)
            if not exhibit.everywhere:
                yield down, (rank, projection.shape[1])


def joined_factors(pieces: Pieces, header: Header, dtype: torch.dtype) -> dict[str, Tensor | Joined]:
    """The museum's deltas as one ordinary LoRA, concatenated from pieces while they are written."""
    shape, ranks = dict(shapes(header)), dict(header.total_ranks())
    tensors: dict[str, Tensor | Joined] = {}
    for projection, factors in pieces.items():
        up, down, alpha = factor_keys(projection, header.family)
        ups, downs = zip(*factors, strict=True)
        tensors |= {
            up: Joined(ups, "beside", shape[up], dtype),
            down: Joined(downs, "below", shape[down], dtype),
            alpha: torch.tensor(float(ranks[projection])),
        }
    return tensors


def factors(deltas: Mapping[Projection, LowRank], family: Family, *, for_diffusers: bool = False) -> dict[str, Tensor]:
    """Deltas as an ordinary LoRA, float32. for_diffusers: by the names that diffusers reads; empty without any."""
    tensors: dict[str, Tensor] = {}
    for projection, delta in deltas.items():
        path = projection.path
        keys = family.structure.diffusers_keys(path) if for_diffusers else factor_keys(projection, family)
        up, down = (stored(factor, torch.float32, path) for factor in (delta.up, delta.down))
        tensors |= dict(zip(keys, (up, down, torch.tensor(float(delta.rank))), strict=False))
    return tensors


def vectors(exhibit: Exhibit, family: Family, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The vectors of the exhibit's word."""
    tensors: dict[str, Tensor] = {}
    ordinary = exhibit.token.layers == 1 and not exhibit.gate
    for encoder, key in vector_keys(exhibit.word, ordinary, family).items():
        value = exhibit.token.vectors[encoder]
        tensors[key] = stored(value[0] if ordinary else value, dtype, exhibit.word)
    return tensors


def own_factors(exhibit: Exhibit, family: Family, dtype: torch.dtype) -> dict[str, Tensor]:
    """The exhibit's original factors, where they differ from those in the sum."""
    if not exhibit.gate and exhibit.strength == 1:
        return {}
    tensors: dict[str, Tensor] = {}
    for projection, delta in exhibit.deltas.items():
        up, down = own_keys(exhibit.word, projection, family)
        tensors[up] = stored(delta.up, dtype, projection.path)
        if exhibit.gate:
            tensors[down] = stored(delta.down, dtype, projection.path)
    return tensors


def stored(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values as the file stores them. Raises MuseumError for a dtype that the conversion would silently round."""
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise MuseumError(f"'{name}' has dtype {value.dtype}; museums are stored as float32. Convert it with .float().")
    return value.detach().to("cpu", dtype)


def _summed(header: Header) -> Iterator[ExhibitHeader]:
    return (exhibit for exhibit in header.exhibits if exhibit.everywhere)
