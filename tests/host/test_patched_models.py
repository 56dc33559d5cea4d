"""Models with other nodes' patches are trained and sampled with these patches."""

import pytest
from clora_pack.clora_core.model.sampling import Sampling, sample
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host.base import HostBase

from .models import extra, learned, small_models, stock

FREE = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
SHRUNK = {
    "block_number": 3,
    "downscale_factor": 2.0,
    "start_percent": 0.0,
    "end_percent": 0.35,
    "downscale_after_skip": True,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}


@pytest.mark.parametrize(
    ("file", "node", "numbers"),
    [
        ("nodes_sag", "SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
        ("nodes_pag", "PerturbedAttentionGuidance", {"scale": 3.0}),
        ("nodes_model_downscale", "PatchModelAddDownscale", SHRUNK),
        ("nodes_freelunch", "FreeU", FREE),
        ("nodes_freelunch", "FreeU_V2", FREE),
        ("nodes_hypertile", "HyperTile", {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
        ("nodes_tomesd", "TomePatchModel", {"ratio": 0.3}),
    ],
)
def test_models_patched_by_stock_nodes_can_be_trained(file: str, node: str, numbers: dict[str, object]):
    model, clip, vae = small_models("sd15")
    base = HostBase(stock(getattr(extra(file), node), model=model, **numbers), clip, vae)
    museum, losses = learned(base, Museum(base.fingerprint), "<one>")
    assert len(losses) == 4 and all(delta.up.abs().max() > 0 for delta in museum.exhibits[0].deltas.values())
    pictures = sample(base, ["a <one>"], museum.tokens, Sampling(steps=1), latent_shape=base.latent_shape(64, 64))
    assert pictures.isfinite().all()
