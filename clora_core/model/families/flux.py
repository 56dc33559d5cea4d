"""FLUX.1 and Chroma: text and picture attend together, each with projections of its own in the double blocks.

Deltas go on the text's keys and values there; the blocks that both share stay as they are. Structure, encoders and
latents: ComfyUI's comfy/ldm/flux, ldm/chroma and text_encoders/flux.py; queries, keys and values are one weight there.
LoRA names: diffusers', which ComfyUI reads for both.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from dataclasses import replace

from .blocks import NUMBERS, Blocks, Layout
from .family import Family, Published

FLUX = Family(
    name="flux",
    title="FLUX.1",
    structure=Blocks(
        key="transformer_blocks.{}.attn.add_k_proj",
        value="transformer_blocks.{}.attn.add_v_proj",
        layouts=(Layout({"double_blocks.{}.txt_attn.qkv": ("query", "key", "value")}),),
        lora="transformer.{}",
    ),
    text_width=4096,
    encoders={"clip_l": 768, "t5xxl": 4096},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("flux1", "Flux.1-dev", implementation="https://github.com/black-forest-labs/flux"),
    kept_bytes=1_440_000,
    checkpointed=0.09,
    reads="stream",
    side_px=16,
    guidance=1.0,
    numbers=NUMBERS,
    needs=("txt_in", "vector_in.in_layer"),
    lacks=("txt_in.c_embedder", "distilled_guidance_layer"),
)

CHROMA = replace(
    FLUX,
    name="chroma",
    title="Chroma",
    encoders={"t5xxl": 4096},
    published=Published("chroma", "chroma"),
    guidance=4.0,
    needs=("txt_in", "distilled_guidance_layer"),
    lacks=(),
)
