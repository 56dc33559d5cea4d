"""Anima and Cosmos-Predict2 (2B and 14B): a transformer with separate cross-attention, over flow matching.

The projections read nothing but the text: T5's states in Cosmos, what the LLM adapter makes of Qwen's states in Anima.
Structure, encoders and latents: ComfyUI's comfy/ldm/cosmos/predict2.py, ldm/anima/model.py, text_encoders/cosmos.py,
text_encoders/anima.py. LoRA names: those of the modules, which ComfyUI and diffusers read.
Memory: calculated, see `kept_bytes` in `family.py`; no model of real size was run.
"""

from .blocks import Blocks, Layout
from .family import Family, Published

STRUCTURE = Blocks(
    key="blocks.{}.cross_attn.k_proj",
    value="blocks.{}.cross_attn.v_proj",
    layouts=(Layout({"blocks.{}.cross_attn.k_proj": ("key",), "blocks.{}.cross_attn.v_proj": ("value",)}),),
)

ANIMA = Family(
    name="anima",
    title="Anima",
    structure=STRUCTURE,
    text_width=1024,
    encoders={"qwen3_06b": 1024},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("anima", "anima-preview"),
    kept_bytes=420_000,
    checkpointed=0.1,
    reads="function",
    frames=True,
    side_px=16,
    guidance=4.0,
    needs=("llm_adapter",),
)

COSMOS = Family(
    name="cosmos-predict2",
    title="Cosmos-Predict2",
    structure=STRUCTURE,
    text_width=1024,
    encoders={"t5xxl": 1024},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("cosmos_predict2", "cosmos-predict2"),
    kept_bytes=420_000,
    checkpointed=0.1,
    reads="function",
    frames=True,
    side_px=16,
    guidance=4.0,
    lacks=("llm_adapter",),
)
