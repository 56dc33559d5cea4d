"""PixArt-α and PixArt-Σ: a transformer with separate cross-attention that reads a small network's view of T5's states.

Structure and encoders: ComfyUI's comfy/ldm/pixart/pixartms.py and text_encoders/pixart_t5.py; keys and values are one
weight there. LoRA names: those of diffusers' modules, which ComfyUI reads; diffusers itself has no LoRA loader for it.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import NUMBERS, SEPARATE, Blocks, Layout
from .family import Family, Published

PIXART = Family(
    name="pixart",
    title="PixArt",
    structure=Blocks(
        SEPARATE,
        layouts=(Layout({"blocks.{}.cross_attn.kv_linear": ("key", "value")}),),
        lora="transformer.{}",
    ),
    text_width=4096,
    encoders={"t5xxl": 4096},
    latent_channels=4,
    resolutions={"epsilon": 1024},
    published=Published("pixart", "pixart-sigma"),
    kept_bytes=195_000,
    checkpointed=0.12,
    reads="function",
    least_side=64,  # its position embedding divides by the side over 64, rounded
    side_px=16,
    guidance=4.5,
    numbers=NUMBERS,
)
