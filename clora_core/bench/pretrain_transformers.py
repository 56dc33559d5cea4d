"""Train the small transformers from scratch: `python -m clora_core.bench.pretrain_transformers --work DIR`.

Flow matching over cached latents of the starter's world, with the starter's own frozen text encoder. Finished weights
are written to `weights/` as float16. Each can be resumed.
"""

import argparse
import functools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..seeds import seeded
from ..starter.draw import drawings
from ..starter.model import load_starter_parts
from ..starter.world import imagine
from .pretrain import tokenize
from .small_transformers import BASIS, CHANNELS, SMALL, WEIGHTS
from .training import built_with_seed, train_network

AT_ONCE = 48
BATCH = 32
STEPS = {"cosmos-predict2": 10_000, "qwen-image": 8_000, "lumina": 4_600}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and cached latents")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished weights")
    parser.add_argument("--networks", nargs="+", default=list(SMALL), choices=list(SMALL))
    parser.add_argument("--steps", type=int, help=f"of each network ({STEPS})")
    parser.add_argument("--pictures", type=int, default=27_840)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    world = transformer_world(arguments.work / "world.safetensors", count=arguments.pictures)
    for name in arguments.networks:
        train_transformer(name, world, arguments.work, arguments.out, steps=arguments.steps or STEPS[name])


def train_transformer(name: str, world: Mapping[str, Tensor], work: Path, out: Path, *, steps: int) -> None:
    """Noise levels are logit-normal (Esser et al. 2024, arXiv:2403.03206); 10 % of captions are dropped."""
    small = SMALL[name]
    network = built_with_seed(small.build, seed=7)
    latents, empty = world["latents"], states_of([""])[0]

    def loss(index: int) -> Tensor:
        rng = seeded(name, index)
        chosen = torch.randint(len(latents), (BATCH,), generator=rng)
        x, states = latents[chosen].float(), world["states"][chosen].float()
        states[torch.rand(len(states), generator=rng) < 0.1] = empty.float()
        noise = torch.randn(x.shape, generator=rng)
        sigmas = torch.randn(len(x), generator=rng).sigmoid()
        level = sigmas.view(-1, 1, 1, 1)
        return F.mse_loss(small.run(network, (1 - level) * x + level * noise, sigmas, states), noise - x)

    def save(module: nn.Module) -> None:
        tensors = {key: value.half().contiguous() for key, value in module.state_dict().items()}
        save_file(tensors | {BASIS: world[BASIS]}, out / f"{name}.safetensors")

    checkpoint = work / f"{name}.safetensors"
    train_network(network, loss, checkpoint, steps=steps, lr=2e-3, decay_from=0.5, ema=0.999, on_checkpoint=save)


def transformer_world(path: Path, *, count: int) -> dict[str, Tensor]:
    """The starter's training world: latents (n, 16, 8, 8) and states (n, 32, 128) float16, and the basis (16, 32).

    The basis has the strongest directions of the starter's latents, scaled to a mean square of one.
    """
    if not path.exists():
        vae = load_starter_parts().vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rng = random.Random(3)
        parts, states = [], []
        for _ in tqdm(range(count // AT_ONCE), "world"):
            pictures, captions = zip(*(imagine(rng) for _ in range(AT_ONCE)), strict=True)
            x = drawings(pictures).contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encode(x).latents.half().contiguous())  # type: ignore[union-attr]
            states.append(states_of(captions))
        whole = torch.cat(parts)
        sample = whole[:1000].double().movedim(1, -1).flatten(0, 2)
        values, directions = torch.linalg.eigh(sample.T @ sample / len(sample))
        basis = (directions[:, -CHANNELS:] * values[-CHANNELS:].mean().rsqrt()).T.float().contiguous()
        latents = torch.cat([torch.einsum("kc,nchw->nkhw", basis, part.float()).half() for part in whole.split(1000)])
        save_file({"latents": latents, "states": torch.cat(states), BASIS: basis}, path)
    return load_file(path)


@torch.no_grad()
def states_of(captions: Sequence[str]) -> Tensor:
    """(n, 32, 128) float16."""
    return text_encoder()(tokenize(list(captions))).last_hidden_state.half()


@functools.cache
def text_encoder() -> nn.Module:
    return load_starter_parts().text_encoder


if __name__ == "__main__":
    main()
