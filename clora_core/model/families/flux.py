"""FLUX.1, FLUX.2 Klein and Chroma: text and picture attend together, each with its own projections in double blocks.

Deltas go on the text's keys and values there; the blocks that both share stay as they are. Structure, encoders and
latents: ComfyUI's comfy/ldm/flux, ldm/chroma and text_encoders/flux.py; queries, keys and values are one weight there.
LoRA names: diffusers', which ComfyUI reads for all. Both sizes of Klein read three layers of Qwen3, and are told apart
by their blocks: 4B has 20 single ones, 9B 24; FLUX.2 dev, with 48, is not supported.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from dataclasses import replace

from .blocks import ADDED, NUMBERS, Blocks, Layout
from .family import Family, Published

FLUX = Family(
    name="flux",
    title="FLUX.1",
    structure=Blocks(
        ADDED,
        layouts=(Layout({"double_blocks.{}.txt_attn.qkv": ("query", "key", "value")}),),
        lora="transformer.{}",
        diffusers=ADDED,
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

KLEIN_4B = replace(
    FLUX,
    name="flux2-klein-4b",
    title="FLUX.2 Klein 4B",
    text_width=7680,
    encoders={"qwen3_4b": 2560},
    latent_channels=128,  # of 16 pixels
    published=Published(
        "flux2_klein_4b", "Flux.2-klein-4b", implementation="https://github.com/black-forest-labs/flux2"
    ),
    kept_bytes=3_400_000,
    checkpointed=0.09,
    guidance=4.0,
    needs=("txt_in", "double_stream_modulation_img.lin"),
    lacks=("single_blocks.20.linear1",),
)

KLEIN_9B = replace(
    KLEIN_4B,
    name="flux2-klein-9b",
    title="FLUX.2 Klein 9B",
    text_width=12288,
    encoders={"qwen3_8b": 4096},
    published=Published(
        "flux2_klein_9b", "Flux.2-klein-9b", implementation="https://github.com/black-forest-labs/flux2"
    ),
    kept_bytes=5_800_000,
    checkpointed=0.08,
    needs=("txt_in", "double_stream_modulation_img.lin", "single_blocks.20.linear1"),
    lacks=("single_blocks.24.linear1",),
)
