"""What the projections read for prompts that a new concept should not change: its second moment C = E[x xᵀ].

In a UNet, all projections read the text states. In a transformer they read what the network makes of them: a function
of the prompt alone (separate cross-attention), or a stream in which earlier blocks have mixed text, picture and time.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..seeds import seeded
from .attach import Reading
from .base import Base, Conditioning
from .concept import ConceptToken
from .low_rank import Moment, Sketch
from .projections import Projection, Slot
from .text_states import Groups, preserved_states, second_moment

HALVES = (torch.float16, torch.bfloat16)
COLUMNS = 256  # of a sketch; at width 3072 a second moment takes 36 MiB, its sketch 3
WHOLE = 1024  # second moments up to this width are kept whole
LEVELS = (0.9, 0.5, 0.1)  # of the timesteps: prompts take turns at them
REAL, PADDING, PICTURE, WORD = range(4)  # kinds of rows

Moments = tuple[Mapping[Projection, Moment], Mapping[Projection, float]]


@torch.no_grad()
def preserved_moments(base: Base, old_prompts: Sequence[str], old_tokens: Sequence[ConceptToken]) -> Moments:
    """projection → C of what it reads for everyday prompts and earlier exhibits', and → E‖W x‖² with what is attached.

    Everyday and earlier prompts have the same weight. So have, in earlier prompts, the words and all other text: the
    other text is much like everyday prompts, so these protect it too, but nothing else protects the words.
    """
    if base.family.reads == "states":
        return _of_states(base, preserved_states(base, old_prompts, old_tokens))
    groups = [_of_inputs(base, base.family.captions, (), "everyday")]
    if old_prompts:
        groups.append(_of_inputs(base, old_prompts, old_tokens, "earlier"))
    moments = {projection: _mean([moment[projection] for moment, _ in groups]) for projection in base.slots}
    sizes = {projection: sum(size[projection] for _, size in groups) / len(groups) for projection in base.slots}
    return moments, sizes


def _of_states(base: Base, groups: Groups) -> Moments:
    """C is one tensor for all projections."""
    sizes = {}
    with Reading.of(base):
        for projection, slot in base.slots.items():
            stored = slot.weight.dtype
            dtype = stored if stored in HALVES else torch.float32  # float8 weights are cast to the input's dtype
            outputs = [(share, slot.output(slot.module(states[None].to(dtype)))[0].float()) for share, states in groups]
            sizes[projection] = sum(float(share * output.square().sum(1).mean()) for share, output in outputs)
    return dict.fromkeys(base.slots, second_moment(groups)), sizes


def _of_inputs(base: Base, prompts: Sequence[str], tokens: Sequence[ConceptToken], group: str) -> Moments:
    """Run the network on the prompts, without a picture, and record the projections' inputs and outputs.

    A stream is read at three noise levels, one per prompt. All kinds of rows have the same weight, or else those of
    padding would outnumber the others.
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

    readers = {projection: projection.path.rpartition(".")[0] if stream else "" for projection in base.slots}
    first = {reader: projection for projection, reader in reversed(readers.items())}
    noise = torch.randn(1, *base.family.latent_shape(side, side), generator=seeded("moments"))
    with ExitStack() as handles:
        for projection, slot in base.slots.items():
            reader = readers[projection] if first[readers[projection]] is projection else None
            handles.callback(slot.module.register_forward_hook(listening(projection, slot, reader)).remove)
        # all before the first prediction: text encoder and network may not fit into memory together
        encoded = [base.encode_prompts([prompt], tokens).to(torch.device("cpu")) for prompt in prompts]
        for number, conditioning in enumerate(encoded):
            kinds = _kinds(conditioning, stream=stream)
            times = torch.tensor([round(LEVELS[number % len(LEVELS)] * (count - 1))])
            noisy = base.schedule.noised(torch.zeros_like(noise), noise, times)
            base.predict(noisy.to(base.device), times.to(base.device), conditioning.to(base.device))
    moments = {reader: _mean([total.moment() for total in sums.values()]) for reader, sums in inputs.items()}
    rows = {reader: {kind: total.rows for kind, total in sums.items()} for reader, sums in inputs.items()}
    sizes = {}
    for projection, squares in outputs.items():
        shares = [sum(parts) / rows[readers[projection]][kind] for kind, parts in squares.items()]
        sizes[projection] = sum(shares) / len(shares)
    return {projection: moments[reader] for projection, reader in readers.items()}, sizes


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
