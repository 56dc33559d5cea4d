"""Without the penalty, C-LoRA is ordinary LoRA on keys and values: peft learns the same from the same inputs."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from clora_core.learning.learn import Progress
from clora_core.learning.lesson import Lesson
from clora_core.learning.start import start
from clora_core.method.recipe import Recipe
from clora_core.model.base import Base
from clora_core.model.low_rank import LowRank
from clora_core.model.projections import Projection
from clora_core.museum.museum import Museum
from clora_core.starter.model import Starter
from tests.small import base_of, short, small_concept, small_starter, taught

STEPS = 4


def peft_learns(starter: Starter, base: Base, recipe: Recipe) -> list[dict[str, LowRank]]:
    """The same learning by peft, diffusers' scheduler, torch's AdamW and a plain loop; the factors after each step."""
    concept = small_concept()
    trained = start(base, [concept], recipe, Museum(base.fingerprint))
    lesson = Lesson.prepared(base, concept, recipe)
    unet = starter.unet
    paths = [projection.path for projection in base.slots]
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=paths, lora_dropout=0.0))
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    assert set(layers) == set(paths)
    with torch.no_grad():
        for projection, delta in trained.deltas.items():
            layers[projection.path].lora_A["default"].weight.copy_(delta.down)
            assert not layers[projection.path].lora_B["default"].weight.any()
    factors = [parameter for name, parameter in unet.named_parameters() if "lora_" in name]
    word = trained.token(concept.word).vectors["clip_l"]
    optimizer = torch.optim.AdamW(
        [
            {"params": factors, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": [word], "lr": recipe.token_learning_rate, "weight_decay": 0.0},
        ]
    )
    scheduler = DDPMScheduler.from_config(starter.scheduler.config)
    after = []
    for number in range(recipe.steps):
        drawn = lesson.step(number, trained)
        states = base.encode_prompts(["a photo of <one>"] * recipe.batch_size, [trained.token("<one>")]).states
        noisy = scheduler.add_noise(drawn.latents, drawn.noise, drawn.timesteps)
        predicted = unet(noisy, drawn.timesteps, encoder_hidden_states=states).sample
        target = drawn.noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(drawn.latents, drawn.noise, drawn.timesteps)
        optimizer.zero_grad()
        F.mse_loss(predicted, target).backward()
        torch.nn.utils.clip_grad_norm_([*factors, word], recipe.clip_norm)
        optimizer.step()
        after.append(
            {
                path: LowRank(
                    layer.lora_B["default"].weight.detach().clone(), layer.lora_A["default"].weight.detach().clone()
                )
                for path, layer in layers.items()
            }
        )
    return after


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_update_matches_peft(prediction: str):
    recipe = short(rank=3, steps=STEPS, learning_rate=1e-3, token_learning_rate=1e-3, weight_decay=0.05)
    starter = small_starter(prediction)
    ours: list[dict[Projection, LowRank]] = []

    def report(progress: Progress) -> None:
        ours.append(progress.trained.increments())

    base = base_of(starter)
    taught(base, Museum(base.fingerprint), small_concept(), recipe, report=report)
    theirs = peft_learns(starter, base_of(small_starter(prediction)), recipe)
    assert len(ours) == len(theirs) == STEPS
    for one, other in zip(ours, theirs, strict=True):
        for projection, delta in one.items():
            peer, hundredth = other[projection.path], 0.01 * recipe.learning_rate
            torch.testing.assert_close(delta.up, peer.up, rtol=0, atol=hundredth)
            torch.testing.assert_close(delta.down, peer.down, rtol=0, atol=hundredth)
    assert all(delta.up.abs().max() > 2 * recipe.learning_rate for delta in ours[-1].values())
    down = start(base, [small_concept()], recipe, Museum(base.fingerprint)).deltas
    assert all(not torch.equal(delta.down, down[projection].down) for projection, delta in ours[-1].items())
