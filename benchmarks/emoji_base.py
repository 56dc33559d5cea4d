"""A base of the starter's kind for the world of `emoji_data.py`.

It starts from the starter's own weights. Its encoder of pictures stays as it is; its decoder learns to draw emoji. The
UNet is trained further, together with a text encoder over the words of emoji.
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.emoji_data import FAMILIAR, TRAINED, World, captions, everyday, varied
from clora_core.bench.pretrain import reconstruction_loss, tokenize
from clora_core.bench.training import built_with_seed, save_half, train_network
from clora_core.model.families.starter import STARTER
from clora_core.over_diffusers.base import DiffusersBase, open_base, starter_parts
from clora_core.seeds import seeded
from clora_core.starter.model import Starter, build_scheduler, build_text_encoder, load_starter_parts
from clora_core.starter.tokenizer import build_tokenizer

VARIANTS = 3  # of each picture: itself, and others that are smaller and shifted
DECODER_STEPS, DECODER_BATCH, DECODER_RATE = 300, 16, 1e-3
STEPS, BATCH, RATE = 7000, 32, 1e-3
WIDE_STEPS = 3500  # on all known things; after that, only on the familiar ones


def open_emoji_base(world: World, work: Path) -> DiffusersBase:
    """The trained base; what is missing of it is trained first."""
    if not (work / "decoder.safetensors").exists():
        train_decoder(world, work)
    if not (work / "unet.safetensors").exists():
        train_base(world, work)
    starter = untrained(world)
    modules = {"unet": starter.unet, "text_encoder": starter.text_encoder, "decoder": starter.vae.decoder}
    for name, module in modules.items():
        module.load_state_dict({key: value.float() for key, value in load_file(work / f"{name}.safetensors").items()})
    base = DiffusersBase(starter_parts(starter))
    base.family = dataclasses.replace(STARTER, captions=everyday(world))
    return base


def untrained(world: World) -> Starter:
    """The starter with a text encoder over the words of emoji. Words that the starter has keep their vectors."""
    starter, words = load_starter_parts(), world.vocabulary
    encoder = built_with_seed(lambda: build_text_encoder(len(words)), seed=11)
    table, own = encoder.get_input_embeddings(), starter.text_encoder.get_input_embeddings()
    ids = starter.tokenizer.get_vocab()
    with torch.no_grad():
        for place, word in enumerate(words):
            if word in ids:
                table.weight[place] = own.weight[ids[word]]
    layers = starter.text_encoder.state_dict()
    encoder.load_state_dict({key: value for key, value in layers.items() if "token_embedding" not in key}, strict=False)
    return Starter(starter.unet, starter.vae, encoder, build_tokenizer(words), build_scheduler())


def examples(world: World) -> list[tuple[str, str]]:
    """All that the base is trained on: pairs of a thing and a designer."""
    return world.drawn(world.known, TRAINED)


def latents(world: World, work: Path) -> tuple[Tensor, Tensor]:
    """`VARIANTS` of each of the `examples`, (n, variants, 3, 64, 64), and their latents; computed once."""
    pictures, rng = world.floats(examples(world)), seeded("emoji variants")
    variants = torch.stack([pictures, *(varied(pictures, rng) for _ in range(VARIANTS - 1))], dim=1)
    path = work / "latents.safetensors"
    if not path.exists():
        base = open_base("starter")
        parts = [base.encode_pictures(part) for part in tqdm(variants.flatten(0, 1).split(64), "latents")]
        save_file({"latents": torch.cat(parts).unflatten(0, (-1, VARIANTS)).half()}, path)
    return variants, load_file(path)["latents"]


def train_decoder(world: World, work: Path) -> None:
    """Reconstruction of emoji from the starter's latents, and from slightly noisy ones, as sampled ones are."""
    variants, z = latents(world, work)
    pixels, z = variants.flatten(0, 1), z.flatten(0, 1)
    decoder = load_starter_parts().vae.decoder.train().requires_grad_(True)
    decoder.to(memory_format=torch.channels_last)

    def loss(index: int) -> Tensor:
        rng = seeded("emoji decoder", index)
        chosen = torch.randint(len(z), (DECODER_BATCH,), generator=rng)
        noisy = z[chosen].float() + 0.05 * torch.randn(DECODER_BATCH, *z.shape[1:], generator=rng)
        return reconstruction_loss(decoder(noisy), pixels[chosen])

    numbers = {"steps": DECODER_STEPS, "lr": DECODER_RATE, "decay_from": 0.5, "ema": 0.98}
    train_network(decoder, loss, work / "decoder-training.safetensors", **numbers, on_checkpoint=ignored)
    save_half(decoder, work / "decoder.safetensors")


def train_base(world: World, work: Path) -> None:
    """Velocity prediction as in `pretrain.train_unet`, 10 % of captions dropped."""
    _, z = latents(world, work)
    words = world.vocabulary
    ids = torch.stack([tokenize(captions(*pair), words) for pair in examples(world)])  # (n, 10, 32)
    empty, schedule, starter = tokenize([""], words)[0], build_scheduler(), untrained(world)
    model = nn.ModuleDict({"unet": starter.unet, "text_encoder": starter.text_encoder}).train().requires_grad_(True)

    def loss(index: int) -> Tensor:
        rng = seeded("emoji base", index)
        pictures = len(z) if index < WIDE_STEPS else FAMILIAR * len(TRAINED)  # the familiar things are the first
        chosen, variant, said = (torch.randint(n, (BATCH,), generator=rng) for n in (pictures, VARIANTS, ids.shape[1]))
        clean, prompts = z[chosen, variant].float(), ids[chosen, said]
        prompts[torch.rand(BATCH, generator=rng) < 0.1] = empty
        noise = torch.randn(clean.shape, generator=rng)
        t = torch.randint(1000, (BATCH,), generator=rng)
        noisy, target = schedule.add_noise(clean, noise, t), schedule.get_velocity(clean, noise, t)  # type: ignore[arg-type]
        states = model["text_encoder"](prompts).last_hidden_state
        return F.mse_loss(model["unet"](noisy, t, states).sample, target)

    numbers = {"steps": STEPS, "lr": RATE, "decay_from": 0.4, "ema": 0.998}
    train_network(model, loss, work / "base-training.safetensors", **numbers, on_checkpoint=ignored)
    for name in ("text_encoder", "unet"):  # the UNet last: it marks the end
        save_half(model[name], work / f"{name}.safetensors")


def ignored(module: nn.Module) -> None:
    """What is saved before the end is the training's own checkpoint."""
