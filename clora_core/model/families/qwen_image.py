"""Qwen-Image: text and picture attend together, each with projections of its own in every block.

Deltas go on the text's keys and values. The edit model has the same network and cannot be distinguished; it learns as
the text-to-image model does. Structure, encoder and latents: ComfyUI's comfy/ldm/qwen_image/model.py and
text_encoders/qwen_image.py. LoRA names: diffusers', which ComfyUI reads too.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import ADDED, NUMBERS, Blocks, Layout
from .family import Family, Published

QWEN_IMAGE = Family(
    name="qwen-image",
    title="Qwen-Image",
    structure=Blocks(
        ADDED,
        layouts=(
            Layout(
                {
                    "transformer_blocks.{}.attn.add_k_proj": ("key",),
                    "transformer_blocks.{}.attn.add_v_proj": ("value",),
                }
            ),
        ),
        lora="transformer.{}",
        diffusers=ADDED,
    ),
    text_width=3584,
    encoders={"qwen25_7b": 3584},
    latent_channels=16,
    resolutions={"flow": 1328},
    published=Published("qwen_image", "Qwen-Image"),
    kept_bytes=1_450_000,
    checkpointed=0.09,
    reads="stream",
    frames=True,
    side_px=16,
    guidance=4.0,
    numbers=NUMBERS,
    needs=("txt_norm", "txt_in"),
)
