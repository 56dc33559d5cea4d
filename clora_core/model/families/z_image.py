"""Z-Image (Turbo and Base): one stream, where text and picture go through the same keys and values.

A change of them would change everything in every prompt, so exhibits act at their word only (gates). Structure, encoder
and latents: ComfyUI's comfy/ldm/lumina/model.py and text_encoders/z_image.py; queries, keys and values are one weight
there. Lumina 2 has the same modules, but fewer keys and values than queries, and another modulation. LoRA names: those
that ComfyUI reads.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import NUMBERS, Blocks, Layout
from .family import Family, Published

Z_IMAGE = Family(
    name="z-image",
    title="Z-Image",
    structure=Blocks(
        {"key": "layers.{}.attention.to_k", "value": "layers.{}.attention.to_v"},
        layouts=(Layout({"layers.{}.attention.qkv": ("query", "key", "value")}),),
    ),
    text_width=2560,
    encoders={"qwen3_4b": 2560},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("zimage", "z-image"),
    kept_bytes=1_560_000,
    checkpointed=0.08,
    reads="shared",
    side_px=16,
    guidance=4.0,
    numbers=NUMBERS,
    needs=("cap_embedder.1",),
    lacks=("layers.0.adaLN_modulation.1", "clip_text_pooled_proj"),
)
