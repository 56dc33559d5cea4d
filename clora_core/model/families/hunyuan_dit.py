"""HunyuanDiT 1.1 and 1.2: a transformer with separate cross-attention that reads a Chinese BERT's and an mT5's states.

Structure and encoders: ComfyUI's comfy/ldm/hydit/models.py and text_encoders/hydit.py. Keys and values are one weight,
and no loader knows its parts by name, so one delta changes both.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from .blocks import NUMBERS, Blocks, Layout
from .family import Family, Published

HUNYUAN_DIT = Family(
    name="hunyuan-dit",
    title="HunyuanDiT",
    structure=Blocks(
        {"key_value": "blocks.{}.attn2.kv_proj"},
        layouts=(Layout({"blocks.{}.attn2.kv_proj": ("key_value",)}),),
    ),
    text_width=1024,
    encoders={"hydit_clip": 1024, "mt5xl": 2048},
    latent_channels=4,
    resolutions={"v_prediction": 1024},
    published=Published("hunyuan_dit", "hunyuan-dit"),
    kept_bytes=557_000,
    checkpointed=0.1,
    reads="function",
    side_px=16,
    guidance=6.0,
    numbers=NUMBERS,
)
