"""Models in packed formats such as GGUF are trained and shown as the weights that they stand for."""

import pytest
import torch
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.identity import models_digest
from clora_pack.nodes.host.view import view

from .models import denoised, learned, small_models
from .packed import packed_and_plain


@pytest.mark.usefixtures("clones_stay_apart")
def test_packed_weights_are_trained_and_shown_as_what_they_stand_for():
    _, clip, vae = small_models("sd15")
    states, shown, found = clip.encode("a photo").cpu(), [], []
    for model in packed_and_plain():
        base = HostBase(model, clip, vae)
        museum, losses = learned(base, Museum(base.fingerprint), "<one>", steps=2)
        found.append(losses)
        shown.append(denoised(view(model, clip, museum)[0], states) - denoised(model, states))
        assert models_digest(model, clip, vae)
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0][0] != found[0][1]
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=0.01 * float(shown[1].abs().max()))
    assert shown[1].abs().max() > 0
