"""Stable Diffusion 1.x, all versions.

Text width, encoder, latents, scale and heads: CompVis/stable-diffusion, configs/stable-diffusion/v1-inference.yaml.
Names for managers: kohya-ss/sd-scripts, library/sai_model_spec.py; the version is ostris/ai-toolkit's, since
ComfyUI-Lora-Manager does not know kohya's.
Memory: counted on a UNet of this shape, 0.69 GiB for a picture of 512 px.
"""

from .family import Checkpoint, Family, Published, StoredEncoder
from .unet import UNet

SD15 = Family(
    name="sd15",
    title="SD1.5",
    structure=UNet(),
    text_width=768,
    encoders={"clip_l": 768},
    latent_channels=4,
    resolutions={"epsilon": 512, "v_prediction": 512},
    published=Published("sd_1.5", "stable-diffusion-v1"),
    kept_bytes=181_000,
    checkpointed=0.27,
    checkpoint=Checkpoint(
        encoders={"clip_l": StoredEncoder("cond_stage_model.transformer.")}, scaling_factor=0.18215, heads=8
    ),
)
