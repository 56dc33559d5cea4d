"""Train the starter's vision transformer: `python -m clora_core.bench.pretrain_vit --pictures known/train --work DIR`.

It classifies the emoji that `bench classification` does not use, randomly turned, moved and recolored.
benchmarks/emoji_pictures.py makes the folder. Training took 36 minutes on two busy CPU cores.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ..pictures import as_floats, to_bytes
from ..seeds import seeded
from .training import built_with_seed, save_half, train_network

OUT = Path(__file__).parent.parent / "classification" / "starter"
SIDE_PX, BATCH = 48, 64
CONFIG = ViTConfig(
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=768,
    image_size=SIDE_PX,
    patch_size=12,
)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE_PX, "width": SIDE_PX},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


class Classifier(nn.Module):
    """The transformer with a linear classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.vit = ViTModel(CONFIG, add_pooling_layer=False)
        self.head = nn.Linear(CONFIG.hidden_size, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.vit(pixel_values=pictures).last_hidden_state[:, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the finished model")
    parser.add_argument("--steps", type=int, default=5000, help=f"updates, of {BATCH} pictures each")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pictures, labels = read_training_pictures(arguments.pictures)
    model = built_with_seed(lambda: Classifier(int(labels.max()) + 1), seed=6)

    def loss(index: int) -> Tensor:
        rng = seeded("pretrain vit", index)
        chosen = torch.randint(len(labels), (BATCH,), generator=rng)
        logits = model(augmented(as_floats(pictures[chosen]), rng))
        return F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)

    def save(module: nn.Module) -> None:
        module.vit.config.save_pretrained(arguments.out)  # type: ignore[union-attr]
        (arguments.out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
        save_half(module.vit, arguments.out / "model.safetensors")  # type: ignore[arg-type]

    train_network(
        model,
        loss,
        arguments.work / "vit.safetensors",
        steps=arguments.steps,
        lr=1e-3,
        decay_from=0.2,
        ema=0.995,
        on_checkpoint=save,
        weight_decay=0.05,
    )


def read_training_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """All pictures, (n, 3, 64, 64) bytes, and the numbers of their classes, (n,)."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(path, number) for number, place in enumerate(classes) for path in sorted(place.glob("*.png"))]
    pictures = torch.stack([to_bytes(Image.open(path)) for path, _ in files])
    return pictures, torch.tensor([number for _, number in files])


def augmented(pictures: Tensor, rng: torch.Generator) -> Tensor:
    """(b, 3, 64, 64) in [-1, 1] → (b, 3, 48, 48): turned, scaled, moved, mirrored and recolored at random, on white."""
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=rng)

    def sometimes(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=rng) < share

    angle, size = uniform(-0.2, 0.2), uniform(0.85, 1.1)
    mirror = torch.where(torch.rand(count, generator=rng) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = torch.stack([cos * mirror, -sin, uniform(-0.08, 0.08), sin * mirror, cos, uniform(-0.08, 0.08)], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3), [count, 3, SIDE_PX, SIDE_PX], align_corners=False)
    pictures = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # 1 is white
    mixing = torch.eye(3) + 0.2 * torch.randn(count, 3, 3, generator=rng) / math.sqrt(3)
    colored = torch.einsum("bij,bjhw->bihw", mixing, pictures)
    pictures = torch.where(sometimes(0.4), colored, pictures)
    pictures = torch.where(sometimes(0.15), pictures.mean(1, keepdim=True), pictures)
    return pictures.clamp(-1, 1)


if __name__ == "__main__":
    main()
