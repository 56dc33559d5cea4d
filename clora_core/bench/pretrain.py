"""Train the starter model from scratch: `python -m clora_core.bench.pretrain --work DIR`.

Three stages, each resumable and with its own seeds: the VAE; the UNet with its text encoder, on cached latents; the
judge. Finished weights are written to `weights/` as float16. On two CPU cores: about 15, 50 and 10 minutes.
"""

# Modules reached by attribute or key are untyped in torch and diffusers:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false

import argparse
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..pictures import as_floats, to_bytes
from ..seeds import seeded
from ..starter.draw import draw, drawings
from ..starter.judge import HEADS, Judge
from ..starter.layout import TOKENS, WEIGHTS
from ..starter.model import build_scheduler, build_text_encoder, build_tokenizer, build_unet, build_vae
from ..starter.styles import restyled
from ..starter.world import imagine
from .training import built_with_seed, save_half, train_network

VAE_PICTURES = 30_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and cached latents")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")
    parser.add_argument("--stages", nargs="+", default=["vae", "unet", "judge"], choices=["vae", "unet", "judge"])
    parser.add_argument("--vae-steps", type=int, default=2200)
    parser.add_argument("--unet-steps", type=int, default=10_000)
    parser.add_argument("--unet-pictures", type=int, default=60_000)
    parser.add_argument("--judge-steps", type=int, default=1200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    if "vae" in arguments.stages:
        train_vae(arguments.work, arguments.out, steps=arguments.vae_steps, device=device)
    if "unet" in arguments.stages:
        world = encoded_world(arguments.work, arguments.out, count=arguments.unet_pictures, device=device)
        train_unet(world, arguments.work, arguments.out, steps=arguments.unet_steps, device=device)
    if "judge" in arguments.stages:
        train_judge(arguments.work, arguments.out, steps=arguments.judge_steps, device=device)


def train_vae(work: Path, out: Path, *, steps: int, device: torch.device) -> None:
    """Train on reconstruction, choose latent coordinates in which errors count as in pixels, and adapt the decoder."""
    rng = random.Random(1)
    pixels = torch.stack(
        [to_bytes(restyled(draw(imagine(rng)[0]), rng)) for _ in tqdm(range(VAE_PICTURES), "pictures")]
    )
    vae = built_with_seed(build_vae, seed=1).to(device, memory_format=torch.channels_last)

    def loss(index: int, *, latent_noise: float = 0.0) -> Tensor:
        rng = seeded("vae", index)
        chosen = torch.randint(len(pixels), (16,), generator=rng)
        x = as_floats(pixels[chosen]).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            z = vae.encode(x).latents
            z = z + latent_noise * torch.randn(z.shape, generator=rng).to(z)
            y = vae.decode(z).sample
        return reconstruction_loss(y.float(), x)

    def save(module: nn.Module) -> None:
        save_half(vae, out / "vae.safetensors")

    both = {"lr": 1e-3, "ema": 0.99, "on_checkpoint": save}
    train_network(vae, loss, work / "vae.safetensors", steps=steps, decay_from=0.5, **both)
    if not (work / "vae_decoder.safetensors").exists():
        balance_latents(vae, as_floats(pixels[:64]).to(device))
    noisy = partial(loss, latent_noise=0.05)
    train_network(vae.decoder, noisy, work / "vae_decoder.safetensors", steps=steps // 4, decay_from=0.2, **both)


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Squared and absolute color errors. The middle, where faces are, has three times the weight."""
    weight = torch.ones_like(x[:1, :1])
    weight[..., 16:52, 14:50] = 3.0
    error = y - x
    return ((error.square() + 0.2 * error.abs()) * weight).mean()


@torch.no_grad()
def balance_latents(vae: nn.Module, x: Tensor) -> None:
    """Rewrite the encoder's last layer so that a squared error of latents is close to one of pixels.

    With J the decoder's Jacobian at one position, the new latents are s·(E[JᵀJ])^½·(z - mean), and s gives them unit
    variance on average. The decoder's first layer inverts the change, up to the soft clamp before it.
    """
    z = vae.encode(x).latents  # (n, 32, 8, 8)
    rows, columns = torch.randint(1, 7, (2, len(z)), generator=seeded("balance"))
    picture = vae.decode(z).sample
    responses = []
    step = 0.05 * z.std()
    for channel in range(z.shape[1]):
        moved = z.clone()
        moved[torch.arange(len(z)), channel, rows, columns] += step
        responses.append((vae.decode(moved).sample - picture).flatten(1) / step)
    jacobian = torch.stack(responses, dim=1)  # (n, 32, pixels)
    metric = (torch.einsum("ncp,ndp->cd", jacobian, jacobian) / len(z)).double()
    values, vectors = torch.linalg.eigh(metric)
    root = vectors @ torch.diag(values.clamp_min(1e-3 * values.max()).sqrt()) @ vectors.T
    flat = rearrange(z, "n c h w -> (n h w) c").double()
    mean = flat.mean(0)
    there = root * ((flat - mean) @ root).square().mean().rsqrt()  # (32, 32)
    back = torch.linalg.inv(there)
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    last.weight.copy_(torch.einsum("cd,dikl->cikl", there.to(last.weight), last.weight))
    last.bias.copy_(there.float() @ (last.bias - mean.float()))
    constant = (first.weight.sum((2, 3)).double() @ mean).float()
    first.weight.copy_(torch.einsum("ockl,cd->odkl", first.weight, back.to(first.weight)))
    first.bias.add_(constant)


def train_unet(world: tuple[Tensor, Tensor], work: Path, out: Path, *, steps: int, device: torch.device) -> None:
    """Velocity prediction over the scaled-linear schedule, 10 % of captions dropped, words learned with the UNet."""
    latents, captions = world
    schedule = build_scheduler()
    model = built_with_seed(lambda: nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder()}), seed=3)
    model.to(device)
    empty = tokenize([""])[0]

    def loss(index: int) -> Tensor:
        rng = seeded("unet", index)
        chosen = torch.randint(len(latents), (64,), generator=rng)
        z, words = latents[chosen].float(), captions[chosen].long()
        words[torch.rand(len(words), generator=rng) < 0.1] = empty
        noise = torch.randn(z.shape, generator=rng)
        t = torch.randint(1000, (len(z),), generator=rng)
        noisy, target = schedule.add_noise(z, noise, t).to(device), schedule.get_velocity(z, noise, t).to(device)
        states = model["text_encoder"](words.to(device)).last_hidden_state
        return F.mse_loss(model["unet"](noisy, t.to(device), states).sample, target)

    def save(module: nn.Module) -> None:
        for name in ("unet", "text_encoder"):
            save_half(module[name], out / f"{name}.safetensors")

    checkpoint = work / "unet.safetensors"
    train_network(model, loss, checkpoint, steps=steps, lr=1.2e-3, decay_from=0.6, ema=0.999, on_checkpoint=save)


def encoded_world(work: Path, weights: Path, *, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents (n, 32, 8, 8) float16 and token ids (n, 32) of the training world, computed once."""
    path = work / "latents.safetensors"
    if not path.exists():
        vae = build_vae().to(device, memory_format=torch.channels_last).eval()
        vae.load_state_dict({key: value.float() for key, value in load_file(weights / "vae.safetensors").items()})
        rng = random.Random(3)
        latents, captions = [], []
        for _ in tqdm(range(count // 48), "latents"):
            pictures, texts = zip(*(imagine(rng) for _ in range(48)), strict=True)
            x = drawings(pictures).to(device, memory_format=torch.channels_last)
            with torch.no_grad():
                latents.append(vae.encode(x).latents.half().cpu().contiguous())
            captions.append(tokenize(list(texts)))
        save_file({"latents": torch.cat(latents).contiguous(), "captions": torch.cat(captions).short()}, path)
    stored = load_file(path)
    return stored["latents"], stored["captions"]


def train_judge(work: Path, out: Path, *, steps: int, device: torch.device) -> None:
    """Train on drawn pictures, half of them blurred and all of them noisy, as sampled ones may be."""
    judge = built_with_seed(Judge, seed=5).to(device, memory_format=torch.channels_last)

    def loss(index: int) -> Tensor:
        rng, torch_rng = random.Random(f"judge {index}"), seeded("judge", index)
        scenes = [imagine(rng)[0] for _ in range(64)]
        pictures = [draw(scene).filter(ImageFilter.GaussianBlur(max(0.0, rng.uniform(-1.3, 1.3)))) for scene in scenes]
        x = as_floats(torch.stack([to_bytes(picture) for picture in pictures]))
        x = x + torch.rand(len(x), 1, 1, 1, generator=torch_rng) * 0.2 * torch.randn(x.shape, generator=torch_rng)
        expected = expected_indices([{"thing": "none", **scene.attributes} for scene in scenes])
        with torch.autocast(device.type, torch.bfloat16):
            verdict = judge(x.to(device, memory_format=torch.channels_last))
        return judge_loss(verdict, {name: value.to(device) for name, value in expected.items()})

    def save(module: nn.Module) -> None:
        save_half(module, out / "judge.safetensors")

    checkpoint = work / "judge.safetensors"
    train_network(judge, loss, checkpoint, steps=steps, lr=2e-3, decay_from=0.4, ema=0.995, on_checkpoint=save)


def tokenize(captions: list[str], words: Sequence[str] = ()) -> Tensor:
    """Token ids (n, 32). words: another vocabulary than the starter's."""
    tokenizer = build_tokenizer(words)
    batch = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return batch.input_ids


def judge_loss(verdict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the attributes of each picture; -1 marks an attribute that it does not have."""
    losses = [F.nll_loss(verdict[name], expected[name], ignore_index=-1, reduction="sum") for name in HEADS]
    present = torch.stack([(expected[name] >= 0).sum() for name in HEADS]).sum()
    return torch.stack(losses).sum() / present


def expected_indices(attributes: Sequence[Mapping[str, str]]) -> dict[str, Tensor]:
    """attribute → (n,): the index of its value, or -1."""
    return {
        name: torch.tensor([values.index(a[name]) if a.get(name) in values else -1 for a in attributes])
        for name, values in HEADS.items()
    }


if __name__ == "__main__":
    main()
