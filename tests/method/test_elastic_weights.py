"""Elastic weight consolidation against per-sample gradients of the real weights, and the scale of its weight."""

import pytest
import torch

from clora_core.method.regularizers import ElasticWeights
from clora_core.method.regularizers.elastic_weights import fisher_information, relative_fisher_weight
from clora_core.method.step import Past
from clora_core.model.attach import attached
from clora_core.model.base import Base
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.model.sampling import Sampling, sampled_latents
from clora_core.museum.museum import Museum
from clora_core.seeds import seeded
from tests.small import (
    LATENT_SHAPE,
    bits,
    museum_of,
    quick_fisher_information,
    setting_with,
    short,
    small_concept,
    step_with,
    taught,
    tensors_of,
)


def test_fisher_information_is_the_mean_square_gradient_of_the_weights(base: Base):
    museum = museum_of(base, "<one>", "<two>")
    past = museum.dense()
    setting = setting_with(Past(total=past, prompts=museum.prompts, tokens=museum.tokens), base=base)
    with base.learning(precision="fp32", checkpointing=False), attached(base, past):
        found = fisher_information(setting, pictures=2, draws=5)
        prompts = list(museum.prompts)
        sampled = sampled_latents(base, prompts, museum.tokens, Sampling(seed=0), latent_shape=LATENT_SHAPE)
        latents = torch.cat(list(sampled))
        weights = {p: slot.module.get_parameter("weight") for p, slot in base.slots.items()}
        expected = {p: torch.zeros_like(weight) for p, weight in weights.items()}
        rng = seeded("fisher information", 5)
        for weight in weights.values():
            weight.requires_grad_(True)
        for number in range(5):
            times = torch.randint(1000, (1,), generator=rng)
            noise = torch.randn(1, *LATENT_SHAPE, generator=rng)
            clean = latents[number % 2][None]
            states = base.encode_prompts([prompts[number % 2]], museum.tokens)
            predicted = base.predict(base.schedule.noised(clean, noise, times), times, states)
            torch.nn.functional.mse_loss(predicted, base.schedule.target(clean, noise, times)).backward()
            for p, weight in weights.items():
                expected[p] += weight.grad**2 / 5
                weight.grad = None
    for p, weight in weights.items():
        assert not weight.requires_grad, "as it was"
        torch.testing.assert_close(found[p], expected[p], rtol=1e-3, atol=1e-12)


def test_the_weight_is_relative_to_the_diffusion_loss():
    place = Projection("a", "key", (6, 9))
    rng = torch.Generator().manual_seed(0)
    past, omega = {place: torch.randn(6, 9, generator=rng)}, {place: torch.rand(6, 9, generator=rng)}
    weight = relative_fisher_weight(2.0, 0.25, omega, past)
    costs = []
    for _ in range(400):
        delta = torch.randn(6, 9, generator=rng)
        delta = delta / delta.norm() * past[place].norm()
        costs.append(weight * float((omega[place] * delta**2).sum()))
    assert sum(costs) / len(costs) == pytest.approx(2 * 0.25, rel=0.05)


def test_the_term_is_the_weighted_sum_of_squares(base: Base, monkeypatch: pytest.MonkeyPatch):
    rng = torch.Generator().manual_seed(0)
    omega = {p: torch.rand(p.shape, generator=rng) for p in base.slots}
    past = {p: torch.randn(p.shape, generator=rng) for p in base.slots}
    new = {p: LowRank(torch.randn(p.shape[0], 2, generator=rng), torch.randn(2, p.shape[1])) for p in base.slots}
    monkeypatch.setattr("clora_core.method.regularizers.elastic_weights.fisher_information", lambda setting: omega)
    setting = setting_with(Past(total=past, prompts=["a photo of <old>"]), base=base, reference_loss=0.5)
    squares = sum(float((omega[p].double() * new[p].dense().double() ** 2).sum()) for p in new)
    expected = relative_fisher_weight(3.0, 0.5, omega, past) * squares
    assert ElasticWeights(3.0).begin(setting)(step_with(new)).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("down", ["learned", "identity"])
def test_learning_with_the_term_is_deterministic_and_gives_smaller_deltas(down: str, base: Base):
    museum = museum_of(base, "<old>")
    learned = {}
    for weight in (0.0, 1000.0):
        recipe = short(ElasticWeights(weight), down=down, steps=6, clip_norm=100.0)
        learned[weight] = [taught(base, museum, small_concept("<new>", seed=3), recipe) for _ in range(2)]
        assert bits(tensors_of(learned[weight][0])) == bits(tensors_of(learned[weight][1]))
    sizes = {
        weight: sum(float(delta.dense().square().sum()) for delta in found[0].exhibits[-1].deltas.values())
        for weight, found in learned.items()
    }
    assert sizes[1000.0] < 0.5 * sizes[0.0]


def test_the_term_is_zero_for_the_first_concept(base: Base):
    losses: list[float] = []
    recipe = short(ElasticWeights())
    taught(
        base,
        Museum(base.fingerprint),
        small_concept(),
        recipe,
        report=lambda progress: losses.append(progress.losses["elastic_weights"]),
    )
    assert losses == [0.0, 0.0, 0.0]


def test_pictures_for_the_fisher_information_are_sampled_in_batches(base: Base, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    plain = base.predict

    def counted(noisy: torch.Tensor, *more: object) -> torch.Tensor:
        sizes.append(len(noisy))
        return plain(noisy, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "predict", counted)
    with quick_fisher_information():
        taught(
            base,
            taught(base, Museum(base.fingerprint), small_concept(), short()),
            small_concept("<two>"),
            short(ElasticWeights(), batch_size=1),
        )
    assert max(sizes) <= 2
