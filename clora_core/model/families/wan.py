"""Wan 2.1 and 2.2, text to video, used for single pictures: a transformer with separate cross-attention.

The projections read a small network's view of umT5's states. Structure, encoder and latents: ComfyUI's
comfy/ldm/wan/model.py and text_encoders/wan.py. Models that are conditioned on a picture have more projections and are
refused. LoRA names: those of the modules, which ComfyUI reads.
Memory: of 14B, counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import NUMBERS, Blocks, Layout
from .family import Family, Published

WAN = Family(
    name="wan",
    title="Wan",
    structure=Blocks(
        {"key": "blocks.{}.cross_attn.k", "value": "blocks.{}.cross_attn.v"},
        layouts=(Layout({"blocks.{}.cross_attn.k": ("key",), "blocks.{}.cross_attn.v": ("value",)}),),
        diffusers={"key": "blocks.{}.attn2.to_k", "value": "blocks.{}.attn2.to_v"},
    ),
    text_width=4096,
    encoders={"umt5xxl": 4096},
    latent_channels=16,
    resolutions={"flow": 832},
    published=Published("wan", "wan-2.1"),
    kept_bytes=1_840_000,
    checkpointed=0.08,
    reads="function",
    frames=True,
    side_px=16,
    guidance=5.0,
    numbers=NUMBERS,
    needs=("text_embedding.0",),
    lacks=("blocks.0.cross_attn.k_img", "vace_patch_embedding", "control_adapter.conv"),
)
