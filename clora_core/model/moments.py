"""What the projections read for prompts that a new concept should not change: its second moment C = E[x xᵀ].

In a UNet, all projections read the text states. In a transformer they read what the network makes of them: a function
of the prompt alone (separate cross-attention), or a stream in which earlier blocks have mixed text, picture and time.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..seeds import seeded
from .attach import Reading
from .base import Base, Conditioning
from .concept import ConceptToken
from .low_rank import Moment, Sketch
from .projections import Projection, Slot
from .text_states import Groups, Report, preserved_states, reported, second_moment, text_states

HALVES = (torch.float16, torch.bfloat16)
COLUMNS = 256  # of a sketch; at width 3072 a second moment takes 36 MiB, its sketch 3
WHOLE = 1024  # second moments up to this width are kept whole
LEVELS = (0.9, 0.5, 0.1)  # of the timesteps: prompts take turns at them
REAL, PADDING, PICTURE, WORD = range(4)  # kinds of rows

Moments = tuple[Mapping[Projection, Moment], Mapping[Projection, float]]


@torch.no_grad()
def preserved_moments(
    base: Base, old_prompts: Sequence[str], old_tokens: Sequence[ConceptToken], report: Report | None = None
) -> Moments:
    """projection → C of what it reads for everyday prompts and earlier exhibits', and → E‖W x‖² with what is attached.

    Everyday and earlier prompts have the same weight. So have, in earlier prompts, the words and all other text: the
    other text is much like everyday prompts, so these protect it too, but nothing else protects the words.
    """
    if base.family.reads == "states":
        return _of_states(base, preserved_states(base, old_prompts, old_tokens, report))
    groups = [_read(base, base.family.captions, (), "everyday", report)]
    if old_prompts:
        groups.append(_read(base, old_prompts, old_tokens, "earlier", report))
    moments = _of_readers(base, lambda reader: _mean([group.moment(reader) for group in groups]))
    sizes = {place: sum(group.size(place) for group in groups) / len(groups) for place in base.slots}
    return moments, sizes


@torch.no_grad()
def word_moments(
    base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken], report: Report | None = None
) -> tuple[Mapping[Projection, Moment], Mapping[Projection, Moment]]:
    """projection → the second moment of what it reads at these words in prompts that contain them, and → elsewhere."""
    if base.family.reads == "states":
        states, at_words = text_states(base, prompts, tokens, report)
        at, elsewhere = (second_moment([(1.0, rows)]) for rows in (states[at_words], states[~at_words]))
        return dict.fromkeys(base.slots, at), dict.fromkeys(base.slots, elsewhere)
    read = _read(base, prompts, tokens, "words", report)
    at_words = _of_readers(base, lambda reader: read.inputs[reader][WORD].moment())
    return at_words, _of_readers(base, lambda reader: read.moment(reader, without=WORD))


def _of_readers(base: Base, moment: Callable[[str], Moment]) -> dict[Projection, Moment]:
    """One and the same for all projections that read the same."""
    found = {reader: moment(reader) for reader in {_reader(base, projection) for projection in base.slots}}
    return {projection: found[_reader(base, projection)] for projection in base.slots}


def _reader(base: Base, projection: Projection) -> str:
    """What reads it: its attention, whose projections read the same rows; or "" if all projections do."""
    return projection.path.rpartition(".")[0] if base.family.reads in ("stream", "shared") else ""


def _of_states(base: Base, groups: Groups) -> Moments:
    """C is one tensor for all projections."""
    sizes = {}
    with Reading.of(base):
        for projection, slot in base.slots.items():
            weight = slot.weight  # the network may not be on its device; float8 weights are cast to the input's dtype
            place = weight.device, weight.dtype if weight.dtype in HALVES else torch.float32
            outputs = [(share, slot.output(slot.module(states[None].to(*place)))[0]) for share, states in groups]
            sizes[projection] = sum(float(share * output.float().square().sum(1).mean()) for share, output in outputs)
    return dict.fromkeys(base.slots, second_moment(groups)), sizes


@dataclass(frozen=True, eq=False)
class _Read:
    """What projections read and gave, by the kind of row. All kinds have the same weight, or else those of padding
    would outnumber the others.

    inputs: reader → kind → their sum. outputs: projection → kind → the squares of each prompt. readers: see `_reader`.
    """

    inputs: Mapping[str, Mapping[int, "_Sum"]]
    outputs: Mapping[Projection, Mapping[int, Sequence[float]]]
    readers: Mapping[Projection, str]

    def moment(self, reader: str, without: int | None = None) -> Moment:
        """Of all kinds of rows but one."""
        return _mean([total.moment() for kind, total in self.inputs[reader].items() if kind != without])

    def size(self, projection: Projection) -> float:
        rows = self.inputs[self.readers[projection]]
        shares = [sum(parts) / rows[kind].rows for kind, parts in self.outputs[projection].items()]
        return sum(shares) / len(shares)


def _read(
    base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken], group: str, report: Report | None
) -> _Read:
    """Run the network on the prompts, without a picture, and record the projections' inputs and outputs.

    A stream is read at three noise levels, one per prompt.
    """
    stream, count = base.family.reads in ("stream", "shared"), len(base.schedule.levels)
    inputs: dict[str, dict[int, _Sum]] = defaultdict(lambda: defaultdict(_Sum))
    outputs: dict[Projection, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    kinds, side = torch.zeros(0), base.family.least_side

    def listening(projection: Projection, slot: Slot, reader: str | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = args[0].float().flatten(0, -2), slot.output(output).float().flatten(0, -2)
            labels = F.pad(kinds, (0, len(x) - len(kinds)), value=PICTURE if stream else REAL)
            for kind in labels.unique().tolist():
                chosen = (labels == kind).to(x.device)
                outputs[projection][kind].append(float(y[chosen].square().sum()))
                if reader is not None:
                    inputs[reader][kind].add(x[chosen], ("moment", group, reader, kind))

        return hook

    readers = {projection: _reader(base, projection) for projection in base.slots}
    first = {reader: projection for projection, reader in reversed(readers.items())}
    noise = torch.randn(1, *base.family.latent_shape(side, side), generator=seeded("moments"))
    with ExitStack() as handles:
        for projection, slot in base.slots.items():
            reader = readers[projection] if first[readers[projection]] is projection else None
            handles.callback(slot.module.register_forward_hook(listening(projection, slot, reader)).remove)
        # all before the first prediction: text encoder and network may not fit into memory together
        encoded = [
            base.encode_prompts([prompt], tokens).to(torch.device("cpu")) for prompt in reported(prompts, report)
        ]
        for number, conditioning in enumerate(reported(encoded, report)):
            kinds = _kinds(conditioning, stream=stream)
            times = torch.tensor([round(LEVELS[number % len(LEVELS)] * (count - 1))])
            noisy = base.schedule.noised(torch.zeros_like(noise), noise, times)
            base.predict(noisy.to(base.device), times.to(base.device), conditioning.to(base.device))
    return _Read(inputs, outputs, readers)


def _kinds(conditioning: Conditioning, *, stream: bool) -> Tensor:
    """The kind of each row of text of one prompt, (tokens,). Only a stream tells real tokens from padding."""
    kinds = torch.full((conditioning.states.shape[1],), REAL)
    if stream and conditioning.real is not None:
        kinds = torch.where(conditioning.real[0].cpu(), REAL, PADDING)
    return torch.where(conditioning.at_words()[0].cpu(), WORD, kinds)


class _Sum:
    """Σ x xᵀ over rows x, whole or as a sketch."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.rows = 0

    def add(self, x: Tensor, name: tuple[str | int, ...]) -> None:
        """x: (n, in). name: of the sketch's random numbers."""
        right = x
        if x.shape[1] > WHOLE:
            right = torch.randn(len(x), COLUMNS, generator=seeded(*name, self.rows)).to(x) / COLUMNS**0.5
        self.total = self.total + x.T @ right
        self.rows += len(x)

    def moment(self) -> Moment:
        assert isinstance(self.total, Tensor)
        if len(self.total) > WHOLE:
            return Sketch(self.total / self.rows**0.5)
        return self.total / self.rows


def _mean(moments: Sequence[Moment]) -> Moment:
    """Sketches of independent random numbers add up to one of as many columns."""
    if any(isinstance(moment, Sketch) for moment in moments):
        columns = [moment.columns for moment in moments if isinstance(moment, Sketch)]
        return Sketch(torch.stack(columns).sum(0) / len(columns) ** 0.5)
    return torch.stack([moment for moment in moments if isinstance(moment, Tensor)]).mean(0)
