"""Models that cannot be trained are refused, each with its reason; all others are accepted."""

from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfyui_version
import pytest
from clora_pack.clora_core.errors import BaseModelError
from clora_pack.nodes.host.model import slots_of
from clora_pack.nodes.host.refused import BY_CLASS, REASONS, why_refused
from packaging.version import Version

# UNets, which are recognized by their projections, and the families of transformers.
SUPPORTED = {
    *("BaseModel", "SDXL", "SD21UNCLIP", "SD_X4Upscaler", "SD15_instructpix2pix", "SDXL_instructpix2pix"),
    *("CosmosPredict2", "Anima", "PixArt", "HunyuanDiT", "WAN21", "Flux", "Chroma", "SD3", "QwenImage"),
}


def of(name: str) -> Any:
    """A model of that class, without parts."""
    kind = getattr(comfy.model_base, name)
    return kind.__new__(kind)


def test_every_model_class_is_supported_or_has_a_reason():
    kinds = {
        name
        for name, kind in vars(comfy.model_base).items()
        if isinstance(kind, type) and issubclass(kind, comfy.model_base.BaseModel)
    }
    refused = {name for name in kinds if why_refused(of(name))}
    assert not refused & SUPPORTED
    if Version(comfyui_version.__version__) <= Version("0.3.64"):  # newer ones have models that are unknown here
        assert kinds - refused == SUPPORTED & kinds


def test_configuration_distinguishes_a_supported_model():
    model = of("Lumina2")
    object.__setattr__(model, "model_config", type("ZImage", (), {})())
    assert why_refused(of("Lumina2")) and not why_refused(model)


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_error_gives_the_reason_and_an_alternative(name: str):
    if not hasattr(comfy.model_base, name):
        pytest.skip("this host has no such model")
    with pytest.raises(BaseModelError, match=rf"^{name} does not support C-LoRA\. [A-Z].*\.$") as refusal:
        slots_of(SimpleNamespace(model=of(name)))  # type: ignore[arg-type]
    assert any(reason in str(refusal.value) and "Use " in reason for reason in REASONS)
