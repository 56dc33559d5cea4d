"""Stable Diffusion XL base and models derived from it: Pony, Illustrious, NoobAI. The refiner is not supported.

Text width, encoders, latents and scale: Stability-AI/generative-models, configs/inference/sd_xl_base.yaml.
Names for managers: kohya-ss/sd-scripts, library/sai_model_spec.py; its LoRA files use the original block names.
Memory: counted on a UNet of this shape, 4.95 GiB for a picture of 1024 px.
"""

from .family import Checkpoint, Family, Published, StoredEncoder
from .unet import UNet

SDXL = Family(
    name="sdxl",
    title="SDXL",
    structure=UNet(ldm_keys=True),
    text_width=2048,
    encoders={"clip_l": 768, "clip_g": 1280},
    latent_channels=4,
    resolutions={"epsilon": 1024, "v_prediction": 1024},
    published=Published(
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
        implementation="https://github.com/Stability-AI/generative-models",
    ),
    kept_bytes=325_000,
    checkpointed=0.12,
    penultimate=True,
    clip_skip=2,
    pooled=True,
    checkpoint=Checkpoint(
        encoders={
            "clip_l": StoredEncoder("conditioner.embedders.0.transformer."),
            "clip_g": StoredEncoder("conditioner.embedders.1.model.", open_clip=True),
        },
        scaling_factor=0.13025,
    ),
)
