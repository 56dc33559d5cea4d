"""Let a frozen model answer as if its projections had moved, for as long as a `with` block lasts.

    output = W·x + past·x + up·(down·x)          W is neither copied nor touched

x are the text states. A word may have vectors of its own for every cross-attention (`layers.py`): then each projection
reads its own layer of the states. A gated delta moves the keys and values at its own word's places only, so a prompt
without the word gets the base model's answer, bit for bit. Gates are not in the papers, and cannot be merged into the
weights.

`attached` says what is added; `Reading` does it, while one batch of text states is read, and again wherever gradient
checkpointing repeats a part of that.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from torch import Tensor, nn

from ..errors import BaseModelError
from .attachment import Attachment, Gate
from .base import Base, Conditioning
from .layers import layer_numbers
from .low_rank import LowRank
from .projections import Projection


@contextmanager
def attached(
    base: Base, deltas: Mapping[Projection, LowRank | Tensor], gate: Gate | None = None
) -> Iterator[Attachment]:
    """While entered, the base adds these deltas to what its projections answer. Nested deltas add up.

    Raises BaseModelError for a projection that the base does not have.
    """
    for projection in deltas:
        if projection not in base.modules:
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
    """While entered, the projections read one batch of text states, with what is attached. May be entered again.

    masks: where each open gate acts, (b, tokens); what has a closed gate adds nothing. layers: the states of all layers
    side by side, (b, tokens, layers · width), if the projections read these instead of what the model gives them.
    Nothing of the model is changed but its modules' hooks, which come off in any case.
    """

    modules: Mapping[Projection, nn.Module]
    attachments: Sequence[Attachment]
    masks: Mapping[Gate, Tensor] = field(default_factory=dict)
    layers: Tensor | None = None
    _entered: list[ExitStack] = field(default_factory=list)

    @classmethod
    def of(cls, base: Base, conditioning: Conditioning | None = None) -> "Reading":
        """How a base reads encoded prompts with what is attached to it at the moment; without any, all gates closed."""
        attachments = [attachment for attachment in base.attachments if attachment.on]
        if conditioning is None:
            return cls(base.modules, attachments)
        tokens, width = conditioning.states.shape[1], base.family.text_width
        gates = {attachment.gate for attachment in attachments if attachment.gate}
        opened = {gate: gate.opened(conditioning.places, tokens) for gate in gates}
        masks = {gate: mask for gate, mask in opened.items() if mask is not None}
        layers = conditioning.states if conditioning.states.shape[-1] > width else None
        return cls(base.modules, attachments, masks, layers)

    def __enter__(self) -> None:
        handles = ExitStack()
        numbers = {} if self.layers is None else layer_numbers(self.modules)
        for projection, module in self.modules.items():
            if self.layers is not None:
                width = projection.shape[1]
                own = self.layers[..., numbers[projection] * width : (numbers[projection] + 1) * width]
                handles.callback(module.register_forward_pre_hook(_instead(own)).remove)
            if adding := [each for each in self.attachments if projection in each.deltas and self._open(each)]:
                # before the hooks of others, which shall see the weights as moved
                hook = module.register_forward_hook(self._adding(projection, adding), prepend=True)
                handles.callback(hook.remove)
        self._entered.append(handles)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().close()

    def _open(self, attachment: Attachment) -> bool:
        return attachment.gate is None or attachment.gate in self.masks

    def _adding(self, projection: Projection, attachments: Sequence[Attachment]):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for attachment in attachments:
                x = inputs[0]
                if attachment.gate:
                    x = x * self.masks[attachment.gate][..., None].to(x)
                output = output + attachment.moved(projection, x).to(output.dtype)
            return output

        return hook


def _instead(states: Tensor):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (states.to(inputs[0]), *inputs[1:])

    return hook
