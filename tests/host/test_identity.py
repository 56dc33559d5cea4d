"""A stored result is reused only for the same models with the same patches."""

from typing import Any

import comfy.model_management
import pytest
import torch
from clora_pack.nodes.actions.inputs import ConceptInputs
from clora_pack.nodes.actions.teaching import NOT_KEPT, train_step
from clora_pack.nodes.host import folders
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.identity import models_digest
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import base_beneath, view
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch.nn import Parameter

from .models import Models, concept, extra, random_museum, recipe, small_models, stock

pytestmark = pytest.mark.usefixtures("own_results")
FREE = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
TILES = {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False}
ModelSampling = extra("nodes_model_advanced").ModelSamplingDiscrete
STOCK = [(extra("nodes_freelunch").FreeU, FREE), (extra("nodes_hypertile").HyperTile, TILES)]


@pytest.fixture(scope="module")
def starter() -> Models:
    with torch.inference_mode():
        return load_starter()


def taught(model: ModelPatcher, clip: Any, vae: Any) -> list[float]:
    """The loss of every step of a Train Step; its results are this test's own."""
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    return train_step(model, clip, vae, [ConceptInputs(concept("<one>"), [images])], recipe(steps=2))[3]["loss"]


def results() -> int:
    return len(list(folders.results_folder().glob("*.result.safetensors")))


def test_models_with_equal_fingerprints_differ(starter: Models):
    model, clip, vae = starter
    mine = models_digest(model, clip, vae)
    assert mine == models_digest(*load_starter())
    key = next(name for name in model.model.state_dict() if name.endswith("attn1.to_k.weight"))
    rows, columns = model.model.state_dict()[key].shape
    lora = model.clone()
    lora.add_patches({key: LoRAAdapter(set(), (torch.ones(rows, 1), torch.ones(1, columns), None, None, None, None))})
    weaker = model.clone()
    weaker.add_patches({key: lora.patches[key][0][1]}, 0.5)
    skipped, padded = clip.clone(), clip.clone()
    skipped.clip_layer(-2)
    padded.set_tokenizer_option("clip_l_min_padding", 1)
    found = [models_digest(lora, clip, vae), models_digest(weaker, clip, vae)]
    found += [models_digest(model, skipped, vae), models_digest(model, padded, vae)]
    assert len({mine, *found}) == 5


def test_base_model_with_the_clip_of_an_earlier_step_counts_as_the_base(starter: Models):
    model, clip, vae = starter
    museum = random_museum(HostBase(*starter), "<one>")
    _, speaking = view(model, clip, museum)
    bare = base_beneath(model, speaking, museum)
    assert models_digest(*bare, vae) == models_digest(model, clip, vae) is not None


def test_loading_a_model_keeps_its_digest():
    """Loading converts some weights to another dtype or device."""
    model, clip, vae = small_models("sd15")
    clip.cond_stage_model.clip_l.logit_scale = Parameter(torch.tensor(4.0, dtype=torch.float16), requires_grad=False)
    mine = models_digest(model, clip, vae)
    comfy.model_management.load_models_gpu([model, clip.patcher])
    assert models_digest(model, clip, vae) == mine
    comfy.model_management.unload_all_models()
    assert models_digest(model, clip, vae) == mine


def test_digest_ignores_the_class_of_the_patcher(starter: Models):
    class Paging(ModelPatcher):
        """As newer ComfyUIs have one for some devices and settings, and not for others."""

    model, clip, vae = starter
    other = Paging(model.model, model.load_device, model.offload_device)
    assert models_digest(other, clip, vae) == models_digest(model, clip, vae)


def test_merged_museum_keeps_the_digest(starter: Models):
    model, clip, vae = starter
    mine = models_digest(model, clip, vae)
    shown, _ = view(model, clip, random_museum(HostBase(model, clip, vae), "<one>", size=0.5))
    comfy.model_management.load_models_gpu([shown])
    assert shown.backup
    assert models_digest(model, clip, vae) == mine
    shown.detach()


def test_model_without_its_museum_has_the_digest_of_the_base(starter: Models):
    model, clip, vae = starter
    shown, speaking = view(model, clip, random_museum(HostBase(model, clip, vae), "<one>"))
    assert models_digest(shown, clip, vae) != models_digest(model, clip, vae) != models_digest(model, speaking, vae)
    assert models_digest(*base_beneath(shown, speaking), vae) == models_digest(model, clip, vae)


def test_other_patches_change_the_digest(starter: Models):
    model, clip, vae = starter
    lower, higher = (stock(ModelSampling, model=model, sampling="v_prediction", zsnr=zsnr) for zsnr in (False, True))
    losses = [taught(lower, clip, vae), taught(higher, clip, vae), taught(lower, clip, vae)]
    assert losses[0] == losses[2] != losses[1]
    assert results() == 2


def test_digest_depends_on_the_computation_dtype(starter: Models):
    """Newer versions of ComfyUI set it for every text encoder."""
    model, clip, vae = starter
    digests = set()
    for dtype in (torch.float32, torch.bfloat16):
        patched = model.clone()
        patched.add_object_patch("manual_cast_dtype", dtype)
        digests.add(models_digest(patched, clip, vae))
    assert len(digests) == 2 and None not in digests


def test_many_chained_loras_can_be_digested(starter: Models):
    """Three whole LoRAs of SDXL; each of their adapters remembers all keys of the file that it came from."""
    model, clip, vae = starter
    key = next(key for key in model.model.state_dict() if key.endswith("attn2.to_k.weight"))
    out, width = model.model.state_dict()[key].shape

    def with_loras(strength: float, *, keys: int = 2000) -> str | None:
        known, patched = {f"key {number}" for number in range(keys)}, model.clone()
        for number in range(3000):
            weights = (torch.full((out, 1), float(number)), torch.ones(1, width), None, None, None, None)
            patched.add_patches({key: LoRAAdapter(known, weights)}, strength)
        return models_digest(patched, clip, vae)

    assert with_loras(1.0) is not None
    assert with_loras(1.0) == with_loras(1.0, keys=3) != with_loras(0.5)


@pytest.mark.parametrize(("node", "given"), STOCK, ids=lambda value: getattr(value, "__name__", ""))
def test_unreadable_patch_prevents_storing_and_is_reported(
    starter: Models, node: type, given: dict, caplog: pytest.LogCaptureFixture
):
    model, clip, vae = starter
    unread = stock(node, model=model, **given)
    caplog.set_level("INFO")
    assert taught(unread, clip, vae) == taught(unread, clip, vae)
    assert results() == 0
    assert "the result is not stored" in caplog.text
    begun = [line for line in caplog.messages if "teaching" in line]
    assert begun and all(NOT_KEPT in line for line in begun), "said before it takes its time"
