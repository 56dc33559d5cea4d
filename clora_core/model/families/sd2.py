"""Stable Diffusion 2.0 and 2.1, with noise prediction (512 px) or velocity prediction (768 px).

Text width, encoder, latents and scale: Stability-AI/stablediffusion, configs/stable-diffusion/v2-inference(-v).yaml.
The text encoder is OpenCLIP's ViT-H, read before its last layer. The threshold that detects v_prediction is ComfyUI's
(comfy/supported_models.py, SD20), so that both open a file in the same way.
Names for managers: kohya-ss/sd-scripts, library/sai_model_spec.py. Memory: as the UNet of Stable Diffusion 1.5.
"""

from .family import Checkpoint, Family, Published, StoredEncoder
from .unet import UNet

SD2 = Family(
    name="sd2",
    title="SD2",
    structure=UNet(),
    text_width=1024,
    encoders={"clip_h": 1024},
    latent_channels=4,
    resolutions={"epsilon": 512, "v_prediction": 768},
    published=Published("sd_v2", "stable-diffusion-v2-512", v2=True),
    kept_bytes=181_000,
    checkpointed=0.27,
    clip_skip=2,
    checkpoint=Checkpoint(
        encoders={"clip_h": StoredEncoder("cond_stage_model.model.", open_clip=True, layers=23)},
        scaling_factor=0.18215,
        velocity_deviation=0.09,
    ),
)
