"""Encode prompts with learned words by transformers' CLIP text encoders.

Long prompts are read in chunks, as in ComfyUI (`model/chunks.py`). The text around a word is tokenized as usual. The
word's places hold a placeholder id; while the encoder runs, a hook on its token embedding inserts the word's vectors.
So gradients reach the vectors, and the embedding does not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ..errors import BaseModelError
from ..model.base import Conditioning
from ..model.chunks import chunks, lengths_of, side_by_side
from ..model.concept import ConceptToken, readable, unknown_start, word_pattern
from ..model.layers import ROWS_AT_ONCE, check_layers


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder of a model.

    name: as in ConceptToken's vectors and ComfyUI ("clip_l"). padding: the id after a prompt's end. penultimate: the
    UNet reads the states before the last layer (SDXL), not the last ones after the final norm. skipped: the number of
    further layers left out at the end (CLIP skip).
    """

    name: str
    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase
    padding: int
    penultimate: bool = False
    skipped: int = 0

    def __post_init__(self) -> None:
        if len(self.tokenizer) > self.table.num_embeddings:
            raise BaseModelError(
                f"The tokenizer of {self.name} has {len(self.tokenizer)} tokens, but its text encoder only "
                f"{self.table.num_embeddings}. They do not belong together; give the model's own tokenizer."
            )
        if self.length < 3:
            raise BaseModelError(
                f"The text encoder {self.name} reads {self.length} tokens, including start and end: no word fits. "
                "Repair model_max_length in tokenizer_config.json."
            )

    @property
    def table(self) -> nn.Embedding:
        """The token embedding, (tokens, width)."""
        table = self.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def width(self) -> int:
        return self.table.embedding_dim

    @property
    def length(self) -> int:
        """The number of ids in a chunk of a prompt, including start, end and padding."""
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    @property
    def reads_inside(self) -> bool:
        """Whether the UNet reads other states than those of the last layer."""
        return self.penultimate or self.skipped > 0

    def states(self, output: BaseModelOutputWithPooling | CLIPTextModelOutput) -> Tensor:
        """The states that the UNet reads, (rows, length, width)."""
        if not self.reads_inside:
            return output.last_hidden_state  # type: ignore[return-value]
        inside = output.hidden_states[-1 - self.penultimate - self.skipped]  # type: ignore[index]
        text: Any = getattr(self.model, "text_model", self.model)
        return inside if self.penultimate else text.final_layer_norm(inside)

    def ids(self, text: str) -> list[int]:
        """The text's ids, without start and end."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[return-value]


@dataclass(frozen=True)
class _Place:
    """Where a word's vector belongs: row of ids, position in the row, word, number of the vector."""

    row: int
    position: int
    word: str
    index: int


def encode(
    encoders: Sequence[TextEncoder], prompts: Sequence[str], tokens: Sequence[ConceptToken], *, layers: int = 1
) -> Conditioning:
    """Encode the prompts by all encoders: states side by side, (prompts, length, Σ widths) float32.

    layers: the number of cross-attentions of the UNet. If any prompt contains a layer-wise word, all are encoded once
    per layer, (prompts, length, layers · Σ widths). Pooled vectors come from the encoder with a projection, if there is
    one, and from the first chunk and layer. Raises ConceptError for a word that does not fit these encoders.
    """
    known = {token.word: token for token in tokens}
    widths = {encoder.name: encoder.width for encoder in encoders}
    states, pooled, masks, lengths = [], None, {}, None
    for encoder in encoders:
        ids, counts, places = _laid_out(encoder, prompts, known)
        for word in {place.word for place in places}:
            known[word].check_fits(widths)
            check_layers(known[word], layers)
        masks = masks or _masks(places, ids.shape, counts, encoder.table.weight.device)
        lengths = lengths_of(counts, encoder.length)
        wide = max((known[place.word].layers for place in places), default=1)
        rows = ids.to(encoder.table.weight.device).repeat_interleave(wide, dim=0)
        parts, pools = [], []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = range(len(rows))[start : start + ROWS_AT_ONCE]
            with _with_vectors(encoder, places, known, wide, part):
                output = encoder.model(rows[part.start : part.stop], output_hidden_states=encoder.reads_inside)
            parts.append(encoder.states(output).float())
            pools.append(getattr(output, "text_embeds", None))
        states.append(side_by_side(torch.cat(parts).unflatten(0, (-1, wide)).transpose(1, 2), counts))
        if isinstance(encoder.model, CLIPTextModelWithProjection):
            pooled = torch.stack([part[0] for part in torch.cat(pools)[::wide].split(counts)]).float()
    return Conditioning(torch.cat(states, dim=-1).flatten(2), pooled, masks, lengths=lengths)


def word_vectors(encoder: TextEncoder, word: str) -> Tensor:
    """An existing word's vectors, (its ids, width) float32 on the CPU. Raises ConceptError if it is unknown."""

    def is_known(text: str) -> bool:
        ids = encoder.ids(text)
        return bool(ids) and encoder.tokenizer.unk_token_id not in ids

    if not is_known(word):
        raise unknown_start(word, encoder.name, is_known)
    return encoder.table.weight.detach()[encoder.ids(word)].float().cpu().clone()


def _laid_out(
    encoder: TextEncoder, prompts: Sequence[str], tokens: Mapping[str, ConceptToken]
) -> tuple[Tensor, list[int], list[_Place]]:
    """The prompts' ids, (rows, length), the number of rows of each prompt, and the places of words."""
    tokenizer, pattern = encoder.tokenizer, word_pattern(list(tokens))
    placeholder = 0 if tokenizer.eos_token_id != 0 else 1  # a second end would move the pooled position
    rows, counts, places, room = [], [], [], encoder.length - 2
    for prompt in prompts:
        prompt, ids, read = readable(prompt, pattern) if tokens else prompt, [], 0
        for match in pattern.finditer(prompt) if tokens else ():
            ids += encoder.ids(prompt[read : match.start()])
            token = tokens[match[0]]
            for index in range(token.words):
                row, position = divmod(len(ids), room)
                places.append(_Place(len(rows) + row, 1 + position, token.word, index))
                ids.append(placeholder)
            read = match.end()
        ids += encoder.ids(prompt[read:])
        parts = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in chunks(ids, room)]
        rows += [part + [encoder.padding] * (encoder.length - len(part)) for part in parts]
        counts.append(len(parts))
    return torch.tensor(rows), counts, places


def _masks(
    places: Sequence[_Place], shape: torch.Size, counts: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """word → its places, (prompts, tokens) bool; the same for all encoders, which read the same tokens."""
    masks: dict[str, Tensor] = {}
    for place in places:
        mask = masks.setdefault(place.word, torch.zeros(shape, dtype=torch.bool))
        mask[place.row, place.position] = True
    return {word: side_by_side(mask, counts).to(device) for word, mask in masks.items()}


@contextmanager
def _with_vectors(
    encoder: TextEncoder, places: Sequence[_Place], tokens: Mapping[str, ConceptToken], wide: int, part: range
) -> Iterator[None]:
    """While entered, the encoder's token embedding returns the words' own vectors at their places.

    wide: the number of consecutive rows with the same chunk, one per layer. part: the rows that are read.
    """
    spots = [(place, layer) for place in places for layer in range(wide) if place.row * wide + layer in part]
    if not spots:
        yield
        return
    rows = torch.tensor([place.row * wide + layer - part.start for place, layer in spots])
    columns = torch.tensor([place.position for place, _ in spots])
    inserted = []
    for place, layer in spots:
        vectors = tokens[place.word].vectors[encoder.name]
        inserted.append(vectors[layer if len(vectors) > 1 else 0, place.index])

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        where = (rows.to(output.device), columns.to(output.device))
        return output.index_put(where, torch.stack(inserted).to(output))

    handle = encoder.table.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
