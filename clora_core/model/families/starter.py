"""The starter, the small model that comes with this package (`clora_core/starter`).

Its text encoder is called clip_l, so that ComfyUI's own class for one encoder holds it. It knows few words, so it has
everyday captions of its own (`starter.txt`): a random sample from its training world. docs/measurements.md says how its
numbers were found.
"""

from pathlib import Path

from ..numbers import Numbers
from .family import Family, Published
from .unet import UNet

STARTER = Family(
    name="starter",
    title="starter",
    structure=UNet(),
    text_width=128,
    encoders={"clip_l": 128},
    latent_channels=32,
    resolutions={"v_prediction": 64},
    published=Published("clora_starter", "clora-starter"),
    kept_bytes=20_000,
    checkpointed=0.25,
    side_px=8,
    guidance=5.0,
    numbers=Numbers(
        rank=4,
        steps=600,
        fitted_steps=300,
        learning_rate=6e-3,
        token_learning_rate=5e-2,
        batch_size=16,
        schedule="cosine",
        vectors=2,
        precision="fp32",
        threads=1,
    ),
    captions=tuple(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()),
)
