"""Where a museum's tensors stand in a file: names and shapes.

    lora_unet_….lora_up.weight (out, R)   .lora_down.weight (R, in)   .alpha = R

with the rank rows of all exhibits in order, R = Σ ranks: ΔW = alpha/R · up @ down is the sum of all deltas, exactly.
An exhibit of a strength other than 1 has its `up` times that strength among them, so that every loader shows it alike,
and its own `up` beside them under `clora.up.<word>.…`, so that nothing is rounded away or lost at strength 0.
These are the keys of kohya's trainer, which ComfyUI, A1111 and Forge read. A word stands under the `bundle_emb` keys
that OneTrainer writes and A1111 reads; a word with an embedding per layer, for which ordinary loaders have no name,
under a key of our own.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import MuseumError
from ..low_rank import LowRank
from ..museum import Exhibit
from ..projections import Architecture, Projection, lora_key
from .header import Header
from .joined import Joined, Rows

Pieces = Mapping[Projection, Sequence[tuple[Rows, Rows]]]  # up (out, rank) and down (rank, in) of each exhibit in turn


def factor_keys(projection: Projection, architecture: Architecture) -> tuple[str, str, str]:
    """The names of up, down and alpha."""
    stem = lora_key(projection, architecture)
    return f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"


def own_up_key(word: str, projection: Projection, architecture: Architecture) -> str:
    """The name of an exhibit's `up` as it was learned, where its strength has changed the one in the sum."""
    return f"clora.up.{word}.{lora_key(projection, architecture)}"


def vector_keys(word: str, layers: int, architecture: Architecture) -> dict[str, str]:
    """encoder → the name of the word's vectors: (words, width), or (layers, words, width) under a key of ours."""
    if layers > 1:
        return {encoder: f"clora.token.{word}.{encoder}" for encoder in architecture.encoders}
    if len(architecture.encoders) == 1:
        return dict.fromkeys(architecture.encoders, f"bundle_emb.{word}.string_to_param.*")
    return {encoder: f"bundle_emb.{word}.{encoder}" for encoder in architecture.encoders}


def rank_rows(header: Header, words: Collection[str]) -> dict[str, dict[Projection, slice]]:
    """word → projection → which rank rows of it are that exhibit's; of these words, in the museum's order."""
    filled = dict.fromkeys(header.projections, 0)
    rows: dict[str, dict[Projection, slice]] = {}
    for exhibit in header.exhibits:
        if exhibit.word in words:
            rows[exhibit.word] = {p: slice(filled[p], filled[p] + rank) for p, rank in exhibit.ranks.items()}
        for projection, rank in exhibit.ranks.items():
            filled[projection] += rank
    return rows


def rank_scales(header: Header, strengths: Mapping[str, float]) -> dict[Projection, Tensor]:
    """projection → (R,), for each rank row the strength of the exhibit that it belongs to, 0 where there is none."""
    scales: dict[Projection, list[float]] = {projection: [] for projection in header.projections}
    for exhibit in header.exhibits:
        for projection, rank in exhibit.ranks.items():
            scales[projection] += [strengths.get(exhibit.word, 0.0)] * rank
    return {projection: torch.tensor(scale) for projection, scale in scales.items()}


def total_ranks(header: Header) -> dict[Projection, int]:
    """projection → R, the ranks of all exhibits together. Exhibits that share their ranks are counted, not visited."""
    totals = dict.fromkeys(header.projections, 0)
    shared = {id(exhibit.ranks): exhibit.ranks for exhibit in header.exhibits}
    for key, count in Counter(id(exhibit.ranks) for exhibit in header.exhibits).items():
        for projection, rank in shared[key].items():
            totals[projection] += rank * count
    return totals


def shapes(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a museum file with this header holds, and no other; each name once."""
    architecture = header.architecture
    for projection, rank in total_ranks(header).items():
        up, down, alpha = factor_keys(projection, architecture)
        rows, columns = projection.shape
        yield from ((up, (rows, rank)), (down, (rank, columns)), (alpha, ()))
    for exhibit in header.exhibits:
        layers = (exhibit.layers,) if exhibit.layers > 1 else ()
        for encoder, key in vector_keys(exhibit.word, exhibit.layers, architecture).items():
            yield key, (*layers, exhibit.words, architecture.encoders[encoder])
        if exhibit.strength != 1:
            for projection, rank in exhibit.ranks.items():
                yield own_up_key(exhibit.word, projection, architecture), (projection.shape[0], rank)


def joined_factors(pieces: Pieces, header: Header, dtype: torch.dtype) -> dict[str, Tensor | Joined]:
    """The museum's deltas as one ordinary LoRA, out of pieces that are put together while they are written."""
    shape, ranks = dict(shapes(header)), total_ranks(header)
    tensors: dict[str, Tensor | Joined] = {}
    for projection, factors in pieces.items():
        up, down, alpha = factor_keys(projection, header.architecture)
        ups, downs = zip(*factors, strict=True)
        tensors |= {
            up: Joined(ups, "beside", shape[up], dtype),
            down: Joined(downs, "below", shape[down], dtype),
            alpha: torch.tensor(float(ranks[projection])),
        }
    return tensors


def factors(
    deltas: Mapping[Projection, LowRank], architecture: Architecture, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Deltas, such as those of all exhibits together, as an ordinary LoRA."""
    tensors: dict[str, Tensor] = {}
    for projection, delta in deltas.items():
        up, down, alpha = factor_keys(projection, architecture)
        tensors |= {
            up: stored(delta.up, dtype, projection.path),
            down: stored(delta.down, dtype, projection.path),
            alpha: torch.tensor(float(delta.rank)),
        }
    return tensors


def vectors(exhibit: Exhibit, architecture: Architecture, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The exhibit's word."""
    tensors: dict[str, Tensor] = {}
    layers = next(iter(exhibit.token.vectors.values())).shape[0]
    for encoder, key in vector_keys(exhibit.word, layers, architecture).items():
        value = exhibit.token.vectors[encoder]
        tensors[key] = stored(value if layers > 1 else value[0], dtype, exhibit.word)
    return tensors


def own_ups(exhibit: Exhibit, architecture: Architecture, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The exhibit's `up` factors as they were learned; none where its strength is 1, and `factors` holds them."""
    if exhibit.strength == 1:
        return {}
    return {
        own_up_key(exhibit.word, projection, architecture): stored(delta.up, dtype, projection.path)
        for projection, delta in exhibit.deltas.items()
    }


def stored(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values as the file keeps them. Raises MuseumError for a dtype that would lose more than is asked for."""
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise MuseumError(f"'{name}' has dtype {value.dtype}; museums are kept as float32. Convert it with .float().")
    return value.detach().to("cpu", dtype)
