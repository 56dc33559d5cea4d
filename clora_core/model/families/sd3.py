"""Stable Diffusion 3 and 3.5 (medium and large): text and picture attend together, each with projections of its own.

Deltas go on the text's keys and values. Structure, encoders and latents: ComfyUI's
comfy/ldm/modules/diffusionmodules/mmdit.py and text_encoders/sd3_clip.py; queries, keys and values are one weight
there. LoRA names: diffusers', which ComfyUI reads too.
Memory: of 3.5 large, counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import ADDED, NUMBERS, Blocks, Layout
from .family import Family, Published

SD3 = Family(
    name="sd3",
    title="SD3",
    structure=Blocks(
        ADDED,
        layouts=(Layout({"joint_blocks.{}.context_block.attn.qkv": ("query", "key", "value")}),),
        lora="transformer.{}",
        diffusers=ADDED,
    ),
    text_width=4096,
    encoders={"clip_l": 768, "clip_g": 1280, "t5xxl": 4096},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("sd3", "stable-diffusion-v3-medium", implementation="https://github.com/Stability-AI/sd3.5"),
    kept_bytes=726_000,
    checkpointed=0.1,
    reads="stream",
    side_px=16,
    guidance=4.5,
    numbers=NUMBERS,
    needs=("context_embedder",),
)
