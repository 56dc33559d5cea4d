"""A family that is only added to the catalogue works in the nodes like any other."""

from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.supported_models_base
import folder_paths
import pytest
from clora_pack.clora_core.errors import BaseModelError
from clora_pack.clora_core.museum.file import load_museum
from clora_pack.nodes.host import folders
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.view import same_museum

from tests.trial import ENCODER, TEXT_WIDTH, added

from .layouts import assert_same_move, stock_view
from .models import CLIP, FAMILIES, Models, SmallSD15, denoised, small_models
from .test_nodes import train

CHANGES = {
    "context_dim": TEXT_WIDTH,
    "num_res_blocks": [2, 2],
    "transformer_depth": [1, 1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
}
TEXT = {**CLIP, "hidden_size": TEXT_WIDTH, "projection_dim": TEXT_WIDTH}


class Words(comfy.sd1_clip.SD1Tokenizer):
    def __init__(self, **options: Any) -> None:
        super().__init__(clip_name="t", **options)
        self.clip_t.embedding_size, self.clip_t.embedding_key = TEXT_WIDTH, ENCODER


class Text(comfy.sd1_clip.SD1ClipModel):
    def __init__(self, model_options: dict[str, Any], **options: Any) -> None:
        own = {**model_options, f"{ENCODER}_model_config": TEXT}
        super().__init__(clip_name="t", model_options=own, **options)


class SmallTrial(SmallSD15):
    def clip_target(self, state_dict: Any = None) -> comfy.supported_models_base.ClipTarget:
        return comfy.supported_models_base.ClipTarget(Words, Text)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setitem(FAMILIES, "trial", (SmallTrial, CHANGES))
    return small_models("trial")


@pytest.mark.usefixtures("clones_stay_apart")
def test_new_family_is_trained_saved_loaded_and_shown(nodes, models, own_results, tmp_path: Path, monkeypatch):
    added(monkeypatch, "clora_pack.clora_core")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "museums", ([str(tmp_path / "museums")], {".safetensors"}))
    model, clip, vae = models
    shown, speaking, museum, *_ = train(nodes, models)
    _, _, museum, *_ = train(nodes, (shown, speaking, vae), "<two>", museum=museum)
    assert HostBase(*models).resolution_px == 64 and len(museum.exhibits[1].deltas) == 22

    nodes["CLoRA_SaveMuseum"].execute(museum, "mine", False)
    (name,) = folders.museum_names()
    loaded, speaking, again = nodes["CLoRA_LoadMuseum"].execute(model, clip, name, "", 1.0).args
    path = folders.museum_path(name)
    assert same_museum(again, museum) and load_museum(path).base.family == "trial"
    assert_same_move(loaded, stock_view(model, path))

    states, pooled = speaking.encode_from_tokens(speaking.tokenize("a photo of <two>"), return_pooled=True)
    assert not denoised(loaded, states, pooled).equal(denoised(model, states, pooled))


def test_unknown_family_error_names_the_known_ones(models):
    with pytest.raises(BaseModelError, match=r"width of \[96\].*sd15 \(768\)"):
        HostBase(*models)
