"""Add deltas to the projections of a frozen model within a `with` block.

    output = W·x + past·x + up·(down·x)          W is neither copied nor changed

x are the text states, or what the model makes of them. A word may have separate vectors for every cross-attention
(`layers.py`); then each projection reads its own layer of the states. A gated delta changes the keys and values only
where its word is, so a prompt without the word gets the base model's output, bit for bit. Gates are not in the papers
and cannot be merged into the weights.

`attached` registers deltas. `Reading` applies them while the model reads one batch of text states, and again when
gradient checkpointing repeats part of that pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BaseModelError
from .attachment import Attachment, Gate
from .base import Base, Conditioning, Frozen
from .layers import layer_numbers
from .low_rank import Matrix
from .projections import Projection, Slot


@contextmanager
def attached(base: Frozen, deltas: Mapping[Projection, Matrix], gate: Gate | None = None) -> Iterator[Attachment]:
    """While entered, the base adds these deltas to the outputs of its projections. Nested deltas add up.

    Raises BaseModelError for a projection that is not in the base.
    """
    for projection in deltas:
        if projection not in base.slots:
            raise BaseModelError(
                f"{base.fingerprint} has no projection '{projection.path}' of shape {projection.shape}."
            )
    attachment = Attachment(deltas, gate)
    base.attachments.append(attachment)
    try:
        yield attachment
    finally:
        base.attachments.remove(attachment)


@dataclass(frozen=True, eq=False)
class Reading:
    """While entered, the projections read one batch of text states with the attached deltas. It can be entered again.

    masks: where each open gate acts, (b, tokens); a delta behind a closed gate adds nothing. layers: the states of all
    layers side by side, (b, tokens, layers · width), if the projections read these instead of the model's own states.
    Only hooks are added to the modules, and they are always removed.
    """

    slots: Mapping[Projection, Slot]
    attachments: Sequence[Attachment]
    masks: Mapping[Gate, Tensor] = field(default_factory=dict)
    layers: Tensor | None = None
    _entered: list[ExitStack] = field(default_factory=list)

    @classmethod
    def of(cls, base: Frozen) -> "Reading":
        """The reading with the base's current attachments and all gates closed."""
        return cls(base.slots, [attachment for attachment in base.attachments if attachment.on])

    @classmethod
    def of_prompts(cls, base: Base, conditioning: Conditioning) -> "Reading":
        """The reading of encoded prompts with the base's current attachments."""
        plain = cls.of(base)
        tokens = conditioning.states.shape[1]
        gates = {attachment.gate for attachment in plain.attachments if attachment.gate}
        opened = {gate: gate.opened(conditioning.places, tokens) for gate in gates}
        masks = {gate: mask for gate, mask in opened.items() if mask is not None}
        wide = base.family.reads == "states" and conditioning.states.shape[-1] > base.family.text_width
        layers = conditioning.states if wide else None
        return cls(base.slots, plain.attachments, masks, layers)

    def __enter__(self) -> None:
        handles = ExitStack()
        numbers = {} if self.layers is None else layer_numbers(self.slots)
        for projection, slot in self.slots.items():
            if self.layers is not None:
                width = projection.shape[1]
                states = self.layers[..., numbers[projection] * width : (numbers[projection] + 1) * width]
                handles.callback(slot.module.register_forward_pre_hook(_replacing_input(states)).remove)
            open_ones = [a for a in self.attachments if projection in a.deltas and (not a.gate or a.gate in self.masks)]
            if open_ones:
                # before other hooks, which then see the output with the deltas
                hook = slot.module.register_forward_hook(self._adding(projection, slot, open_ones), prepend=True)
                handles.callback(hook.remove)
        self._entered.append(handles)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().close()

    def _adding(self, projection: Projection, slot: Slot, attachments: Sequence[Attachment]):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for attachment in attachments:
                x = inputs[0]
                if attachment.gate:
                    x = x * _over(x, self.masks[attachment.gate])
                output = slot.added(output, attachment.moved(projection, x).to(output.dtype))
            return output

        return hook


def _over(x: Tensor, mask: Tensor) -> Tensor:
    """The mask (b, tokens) as (b, rows, 1), for x (b, rows, width). Rows after the tokens, a picture's, are closed.

    PixArt joins the rows of all prompts: x (1, b · rows, width).
    """
    rows = x.shape[0] * x.shape[1] // len(mask)
    return F.pad(mask, (0, rows - mask.shape[1])).view(*x.shape[:2], 1).to(x)


def _replacing_input(states: Tensor):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (states.to(inputs[0]), *inputs[1:])

    return hook
