"""Where a museum's tensors stand in a file: names and shapes.

    lora_unet_….lora_up.weight (out, R)   .lora_down.weight (R, in)   .alpha = R

with the rank rows of all exhibits in order, R = Σ ranks: ΔW = alpha/R · up @ down is the sum of all deltas, exactly.
These are the keys of kohya's trainer, which ComfyUI, A1111 and Forge read. A word stands under the `bundle_emb` keys
that OneTrainer writes and A1111 reads; a word with an embedding per layer, for which ordinary loaders have no name,
under a key of our own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import MuseumError
from ..low_rank import LowRank
from ..museum import Exhibit, Museum
from ..projections import Architecture, Projection, lora_key
from .header import Header


def factor_keys(projection: Projection, architecture: Architecture) -> tuple[str, str, str]:
    """The names of up, down and alpha."""
    stem = lora_key(projection, architecture)
    return f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"


def vector_keys(word: str, layers: int, architecture: Architecture) -> dict[str, str]:
    """encoder → the name of the word's vectors: (words, width), or (layers, words, width) under a key of ours."""
    if layers > 1:
        return {encoder: f"clora.token.{word}.{encoder}" for encoder in architecture.encoders}
    if len(architecture.encoders) == 1:
        return dict.fromkeys(architecture.encoders, f"bundle_emb.{word}.string_to_param.*")
    return {encoder: f"bundle_emb.{word}.{encoder}" for encoder in architecture.encoders}


def rank_rows(header: Header) -> dict[str, dict[Projection, slice]]:
    """word → projection → which rank rows of it are that exhibit's."""
    filled = dict.fromkeys(header.projections, 0)
    rows: dict[str, dict[Projection, slice]] = {}
    for exhibit in header.exhibits:
        rows[exhibit.word] = {}
        for projection, rank in exhibit.ranks.items():
            rows[exhibit.word][projection] = slice(filled[projection], filled[projection] + rank)
            filled[projection] += rank
    return rows


def total_ranks(header: Header) -> dict[Projection, int]:
    """projection → R, the ranks of all exhibits together."""
    totals = dict.fromkeys(header.projections, 0)
    for exhibit in header.exhibits:
        for projection, rank in exhibit.ranks.items():
            totals[projection] += rank
    return totals


def shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Every tensor that a museum file with this header holds, and no other."""
    architecture = header.architecture
    expected: dict[str, tuple[int, ...]] = {}
    for projection, rank in total_ranks(header).items():
        up, down, alpha = factor_keys(projection, architecture)
        rows, columns = projection.shape
        expected |= {up: (rows, rank), down: (rank, columns), alpha: ()}
    for exhibit in header.exhibits:
        layers = (exhibit.layers,) if exhibit.layers > 1 else ()
        for encoder, key in vector_keys(exhibit.word, exhibit.layers, architecture).items():
            expected[key] = (*layers, exhibit.words, architecture.encoders[encoder])
    return expected


def factors(
    museum: Museum, architecture: Architecture, dtype: torch.dtype = torch.float32, *, evenly: bool = False
) -> dict[str, Tensor]:
    """The deltas of all exhibits as one ordinary LoRA; if `evenly`, with zeros for the same rank everywhere."""
    tensors: dict[str, Tensor] = {}
    deltas = museum.deltas()
    if evenly:
        rank = max((delta.rank for delta in deltas.values()), default=0)
        deltas = {projection: _filled(delta, rank) for projection, delta in deltas.items()}
    for projection, delta in deltas.items():
        up, down, alpha = factor_keys(projection, architecture)
        tensors |= {
            up: _stored(delta.up, dtype, projection.path),
            down: _stored(delta.down, dtype, projection.path),
            alpha: torch.tensor(float(delta.rank)),
        }
    return tensors


def vectors(exhibit: Exhibit, architecture: Architecture, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The exhibit's word."""
    tensors: dict[str, Tensor] = {}
    layers = next(iter(exhibit.token.vectors.values())).shape[0]
    for encoder, key in vector_keys(exhibit.word, layers, architecture).items():
        value = exhibit.token.vectors[encoder]
        tensors[key] = _stored(value if layers > 1 else value[0], dtype, exhibit.word)
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise MuseumError for the first tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise MuseumError(f"'{name}' holds values that are not finite numbers.")


def _filled(delta: LowRank, rank: int) -> LowRank:
    more = rank - delta.rank
    return LowRank(functional.pad(delta.up, (0, more)), functional.pad(delta.down, (0, 0, 0, more)))


def _stored(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise MuseumError(f"'{name}' has dtype {value.dtype}; museums are kept as float32. Convert it with .float().")
    return value.detach().to("cpu", dtype)
