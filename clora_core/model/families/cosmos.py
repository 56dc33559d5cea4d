"""Cosmos-Predict2 (2B and 14B) and Anima, text to image: transformers with separate cross-attention over flow matching.

Cosmos' projections read T5's states and nothing else. Anima's read what an adapter in the network makes of Qwen3's
states: a row for each of T5's tokens, with the padding's id where a learned word is, as ComfyUI does it for
embeddings. Structure, encoders and latents: ComfyUI's comfy/ldm/cosmos/predict2.py, ldm/anima, text_encoders/cosmos.py
and text_encoders/anima.py. LoRA names: those of the modules, which ComfyUI reads.
Memory: counted by benchmarks/transformer_memory.py; no model of real size was run.
"""

from dataclasses import replace

from .blocks import NUMBERS, SEPARATE, Blocks, Layout
from .family import Family, Published

COSMOS = Family(
    name="cosmos-predict2",
    title="Cosmos-Predict2",
    structure=Blocks(
        {"key": "blocks.{}.cross_attn.k_proj", "value": "blocks.{}.cross_attn.v_proj"},
        layouts=(Layout({"blocks.{}.cross_attn.k_proj": ("key",), "blocks.{}.cross_attn.v_proj": ("value",)}),),
        diffusers=SEPARATE,
    ),
    text_width=1024,
    encoders={"t5xxl": 1024},
    latent_channels=16,
    resolutions={"flow": 1024},
    published=Published("cosmos_predict2", "cosmos-predict2"),
    kept_bytes=550_000,
    checkpointed=0.09,
    reads="function",
    frames=True,
    side_px=16,
    guidance=4.0,
    numbers=NUMBERS,
    lacks=("llm_adapter",),
)

ANIMA = replace(
    COSMOS,
    name="anima",
    title="Anima",
    encoders={"qwen3_06b": 1024},
    numbers=replace(NUMBERS, token="learned"),
    published=Published("anima", "anima"),
    needs=("llm_adapter",),
    lacks=(),
)
