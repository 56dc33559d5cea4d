"""Count what a training step of each transformer family keeps for the backward pass, at its real size.

    COMFYUI_PATH=… PYTHONPATH=. python benchmarks/transformer_memory.py        (with ComfyUI's own Python)

ComfyUI's own network classes run forward on torch's meta device, which has shapes but no memory, in bfloat16, for one
picture of 1024×1024 pixels and 512 text tokens. Every tensor that autograd saves is counted once, weights not.
Attention keeps its inputs and its output, as flash attention on a GPU does. Gradients begin at the first trained
projection. Bytes per latent pixel are the families' `kept_bytes`. With gradient checkpointing, only the inputs of the
blocks and one block are kept, which gives `checkpointed`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.host.finding import find_host, import_host

SIDE = 128  # of the latents
COARSER = {"flux2-klein-4b": 64}  # latents of 16 pixels
TOKENS = 512
FLUX = {"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38}
FLUX |= {"axes_dim": [16, 56, 56]}
# What differs from the small networks of the tests. Sizes: ComfyUI's model detection, and the published weights.
REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "cosmos-predict2 (2B)": (
        "cosmos-predict2",
        {"model_channels": 2048, "num_blocks": 28, "num_heads": 16, "adaln_lora_dim": 256},
    ),
    "pixart (Sigma)": ("pixart", {"input_size": 128, "hidden_size": 1152, "depth": 28, "num_heads": 16}),
    "hunyuan-dit (1.2)": (
        "hunyuan-dit",
        {"input_size": 128, "hidden_size": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 4.3637},
    ),
    "wan (1.3B)": ("wan", {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}),
    "wan (14B)": ("wan", {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}),
    "flux (dev)": ("flux", FLUX),
    "flux2-klein-4b": (
        "flux2-klein-4b",
        {"hidden_size": 3072, "num_heads": 24, "depth": 5, "depth_single_blocks": 20},
    ),
    "flux2-klein-9b": (
        "flux2-klein-4b",
        {"hidden_size": 4096, "num_heads": 32, "depth": 8, "depth_single_blocks": 24, "context_in_dim": 12288},
    ),
    "chroma": ("chroma", {**FLUX, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5}),
    "sd3 (3.5 large)": (
        "sd3",
        {
            "depth": 38,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 64 * 38},
            },
            "pos_embed_max_size": 192,
            "num_patches": 36864,
        },
    ),
    "qwen-image": ("qwen-image", {"num_layers": 60, "num_attention_heads": 24}),
    "z-image": (
        "z-image",
        {
            **{"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "n_kv_heads": 30},
            **{"ffn_dim_multiplier": 8.0 / 3.0, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512]},
        },
    ),
}
REAL["anima"] = "anima", REAL["cosmos-predict2 (2B)"][1]
BLOCKS = ("blocks", "double_blocks", "single_blocks", "joint_blocks", "transformer_blocks", "layers")


class FlashAttention(torch.autograd.Function):
    """Its shapes, and what it saves; the backward pass does not run."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError


def attention(query: Tensor, key: Tensor, value: Tensor, *more: Any, **options: Any) -> Tensor:
    return FlashAttention.apply(query, key, value)


class Kept:
    """The bytes that autograd saves while it is entered, and how many of them each block saves."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        self.storages: dict[int, tuple[Any, str]] = {}
        self.inputs: dict[str, int] = {}
        self.block = ""

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.storages.setdefault(storage._cdata, (storage, self.block))
        return tensor

    def total(self, block: str | None = None) -> int:
        return sum(storage.nbytes() for storage, own in self.storages.values() if block in (None, own))

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        handles = []
        for group in BLOCKS:
            for number, block in enumerate(getattr(network, group, ())):
                name = f"{group}.{number}"
                handles.append(block.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(block.register_forward_hook(self._leave))
        with torch.autograd.graph.saved_tensors_hooks(self.save, lambda tensor: tensor):
            yield
        for handle in handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.block = name
            given = [value for value in (*inputs, *options.values()) if isinstance(value, Tensor)]
            self.inputs[name] = sum(value.nbytes for value in given if value.requires_grad)

        return enter

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        self.block = ""

    def checkpointed(self) -> int:
        outside = self.total("")
        return outside + sum(self.inputs.values()) + max(self.total(block) for block in self.inputs)


def prepared(
    family: str, sizes: dict[str, Any], device: str, side: int
) -> tuple[nn.Module, Callable[[], AbstractContextManager[Callable[[], Tensor]]]]:
    """A network of that size in bfloat16, and what enters learning and gives its forward pass, with gradients from the
    first projection on. side: of the latents."""
    import comfy.supported_models
    from clora_pack.clora_core.model.families import family_named
    from clora_pack.nodes.host.differentiable import differentiable_transformer, plain_attention

    from tests.host.small_transformers import NETWORKS

    name, config = NETWORKS[family]
    kind = getattr(comfy.supported_models, name)({**config, **sizes})
    kind.set_inference_dtype(torch.bfloat16, None)
    with torch.no_grad():
        model = kind.get_model({}, "", device=torch.device(device))
        network = model.diffusion_model.to(device=device).requires_grad_(False)
    known = family_named(family)
    modules = dict(network.named_modules())
    places = known.structure.find(modules, lambda module: modules[module].weight.shape)
    for path in {place.module for place in places.values()}:
        modules[path].register_forward_hook(
            lambda module, inputs, output: output + torch.zeros_like(output).requires_grad_()
        )

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, device=device, dtype=torch.bfloat16)

    context = zeros(1, TOKENS, sizes.get("context_in_dim", known.text_width))
    latents = zeros(1, *known.latent_shape(side, side))
    options: dict[str, Any] = {}
    if family in ("flux", "sd3"):
        options["y"] = zeros(1, 768 if family == "flux" else 2048)
    if family in ("flux", "chroma"):
        options["guidance"] = zeros(1)
    if family in ("cosmos-predict2", "anima"):
        options["padding_mask"] = zeros(1, 1, side * 8, side * 8)
    if family == "hunyuan-dit":
        options["encoder_hidden_states_t5"] = zeros(1, 256, 2048)
        options["text_embedding_mask"], options["text_embedding_mask_t5"] = zeros(1, TOKENS), zeros(1, 256)
    if family == "z-image":
        options["num_tokens"] = TOKENS
    options["transformer_options"] = {"optimized_attention_override": plain_attention}

    @contextmanager
    def learning() -> Iterator[Callable[[], Tensor]]:
        with differentiable_transformer(network, nn.Identity(), dtype=torch.bfloat16, again=None):
            yield lambda: network(latents, torch.zeros(1, device=device), context=context, control=None, **options)

    return network, learning


def kept(family: str, sizes: dict[str, Any], side: int = 0) -> tuple[Kept, float]:
    """Of one forward pass, and the billions of weights."""
    network, learning = prepared(family, sizes, "meta", side or COARSER.get(family, SIDE))
    seen = Kept(network)
    with learning() as forward, seen.watching(network):
        forward()
    return seen, sum(weight.numel() for weight in network.parameters()) / 1e9


def count_attention() -> None:
    """From now on, attention has shapes only."""
    import comfy.ldm.hydit.attn_layers
    import comfy.ldm.hydit.poolers
    import comfy.ldm.pixart.blocks
    import comfy.ops
    from comfy.ldm.modules.attention import attention_pytorch

    for module in (comfy.ldm.pixart.blocks, comfy.ldm.hydit.attn_layers, comfy.ldm.hydit.poolers):
        module.optimized_attention = attention_pytorch  # they take no override
    comfy.ops.scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention = attention


def main() -> None:
    import_host(find_host())  # type: ignore[arg-type]
    count_attention()
    from tests.host.small_transformers import NETWORKS

    for title, (family, sizes) in REAL.items():
        if family not in NETWORKS:  # of another host
            continue
        seen, billions = kept(family, sizes)
        total, checkpointed = seen.total(), seen.checkpointed()
        row = {
            "model": title,
            "weights (billions)": round(billions, 2),
            "kept (bytes per latent pixel)": total // COARSER.get(family, SIDE) ** 2,
        }
        row |= {"kept (GiB)": round(total / 2**30, 2), "checkpointed (GiB)": round(checkpointed / 2**30, 2)}
        print(json.dumps(row | {"checkpointed": round(checkpointed / total, 3)}), flush=True)


if __name__ == "__main__":
    main()
