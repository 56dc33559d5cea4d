"""Attached deltas act like changed weights; afterwards the model is unchanged."""

import pytest
import torch

from clora_core.errors import BaseModelError
from clora_core.model.attach import Reading, attached
from clora_core.model.attachment import Gate
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from tests.small import LATENT_SHAPE, predictions, random_deltas, small_base


def folded(base: Base, *all_deltas: dict[Projection, LowRank]) -> Base:
    """Another copy of the base with the deltas added to its weights."""
    copy = small_base()
    assert torch.equal(predictions(copy), predictions(base))
    with torch.no_grad():
        for deltas in all_deltas:
            for projection, delta in deltas.items():
                copy.slots[projection].weight.add_(delta.dense())
    return copy


def hooks(base: Base) -> int:
    return sum(len(slot.module._forward_hooks) + len(slot.module._forward_pre_hooks) for slot in base.slots.values())


def test_zero_deltas_change_no_bit(base: Base):
    zero = {projection: LowRank(torch.zeros_like(d.up), d.down) for projection, d in random_deltas(base).items()}
    plain = predictions(base)
    with attached(base, zero):
        assert torch.equal(predictions(base), plain)
    with attached(base, {projection: delta.dense() for projection, delta in zero.items()}):
        assert torch.equal(predictions(base), plain)
    with attached(base, {}):
        assert torch.equal(predictions(base), plain)


def test_attaching_equals_adding_the_deltas_to_the_weights(base: Base):
    deltas = random_deltas(base)
    with attached(base, deltas):
        ours = predictions(base)
    torch.testing.assert_close(ours, predictions(folded(base, deltas)), rtol=1e-4, atol=1e-5)
    assert (ours - predictions(base)).abs().max() > 1e-3, "the deltas matter"


def test_each_projection_can_be_changed_alone(base: Base):
    plain = predictions(base)
    for projection, delta in random_deltas(base, size=1).items():
        with attached(base, {projection: delta}):
            ours = predictions(base)
        assert not torch.equal(ours, plain), projection
        torch.testing.assert_close(ours, predictions(folded(base, {projection: delta})), rtol=1e-4, atol=1e-5)


def test_low_rank_and_dense_deltas_agree(base: Base):
    deltas = random_deltas(base)
    with attached(base, deltas):
        low_rank = predictions(base)
    with attached(base, {projection: delta.dense() for projection, delta in deltas.items()}):
        dense = predictions(base)
    torch.testing.assert_close(low_rank, dense, rtol=1e-4, atol=1e-5)


def test_nested_deltas_add_up(base: Base):
    one, other = random_deltas(base), random_deltas(base, seed=1)
    with attached(base, one):
        with attached(base, other):
            both = predictions(base)
        first = predictions(base)
    torch.testing.assert_close(both, predictions(folded(base, one, other)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, predictions(folded(base, one)), rtol=1e-4, atol=1e-5)


def test_leaving_restores_every_bit_and_leaves_no_hook(base: Base):
    plain, before = predictions(base), hooks(base)
    with attached(base, random_deltas(base)):
        with Reading.of(base):
            assert hooks(base) == before + len(base.slots)
        assert not torch.equal(predictions(base), plain)
        assert hooks(base) == before
    assert torch.equal(predictions(base), plain)
    assert not base.attachments


def test_other_hooks_get_the_changed_output(base: Base):
    projection, delta = next(iter(random_deltas(base, size=1).items()))
    module, seen = base.slots[projection].module, []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with attached(base, {projection: delta}):
        predictions(base)
    handle.remove()
    states, output = seen[0]
    torch.testing.assert_close(output, module(states) + states @ delta.dense().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("onwards", [False, True])
def test_a_checkpointed_backward_pass_repeats_the_forward_pass(base: Base, onwards: bool):
    """Also if other prompts were used in between, and after the deltas were detached."""
    word = ConceptToken("<one>", {"clip_l": torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))})
    latents, times = torch.zeros(1, *LATENT_SHAPE), torch.tensor([500])

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        deltas = {
            projection: LowRank(delta.up.requires_grad_(), delta.down.requires_grad_())
            for projection, delta in random_deltas(base, size=1).items()
        }
        with base.learning(precision="fp32", checkpointing=checkpointing):
            with attached(base, deltas, Gate("<one>", onwards=onwards)):
                answer = base.predict(latents, times, base.encode_prompts(["a <one> at night"], [word]))
                base.predict(latents, times, base.encode_prompts(["<one>, <one>"], [word]))
                base.predict(latents, times, base.encode_prompts(["a cat"], [word]))
            return list(
                torch.autograd.grad(answer.square().sum(), [f for d in deltas.values() for f in (d.up, d.down)])
            )

    for one, other in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(one, other) and one.any()


def test_an_exception_inside_restores_every_bit(base: Base):
    plain, before = predictions(base), hooks(base)
    with pytest.raises(KeyboardInterrupt), attached(base, random_deltas(base)), attached(base, random_deltas(base)):
        raise KeyboardInterrupt
    assert torch.equal(predictions(base), plain)
    assert hooks(base) == before


def test_an_unknown_projection_is_refused(base: Base):
    plain, before = predictions(base), hooks(base)
    unknown = Projection("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "key", (64, 128))
    deltas = {**random_deltas(base), unknown: torch.zeros(64, 128)}
    with pytest.raises(BaseModelError, match=r"no projection 'mid_block.*attn2.to_k' of shape \(64, 128\)"):
        with attached(base, deltas):
            pass
    assert torch.equal(predictions(base), plain)
    assert hooks(base) == before


def test_a_projection_of_another_shape_is_refused(base: Base):
    projection = next(iter(base.slots))
    wrong = Projection(projection.path, projection.role, (projection.shape[0] + 1, projection.shape[1]))
    with pytest.raises(BaseModelError, match="no projection"), attached(base, {wrong: torch.zeros(wrong.shape)}):
        pass
