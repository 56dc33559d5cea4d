"""A concept learned over a checkpoint file by the stock loader, in a ComfyUI started from its own main.py."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from clora_pack.clora_core.method.recipe import RECIPES
from clora_pack.clora_core.museum.file import load_museum

from .checkpoints import write_checkpoint
from .prompts import checkpoint, loaded, node, saved_chain, shown
from .server import Server

PROJECTIONS = {"sd15": 32, "sd2": 32, "sdxl": 140}  # as many as the published models have
FEW = {"steps": 2, "batch_size": 1, "learning_rate": 2e-2}
ADVANCED = ("token_learning_rate", "accumulation", "clip_norm", "weight_decay", "schedule", "warmup", "flip")
ADVANCED += ("min_snr_gamma", "precision", "checkpointing")
PATIENCE_S = 1200
FILE = "random.safetensors"
TEXT = "a photo of <ada>, (<ada>:1.2)!"


@pytest.fixture
def family(request: pytest.FixtureRequest, server: Server) -> Iterator[str]:
    """The family of a checkpoint in the server's folder. It takes gigabytes, so it goes when the test ends."""
    family, widths = request.param
    path = server.folder / "models/checkpoints" / FILE
    write_checkpoint(family, path, widths)
    yield family
    path.unlink()
    forget(server)


def forget(server: Server) -> None:
    """Let ComfyUI give up all that it loaded and computed. It does so before its next but one prompt at the latest."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    image = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    assert server.run({"image": image, "show": node("PreviewImage", images=["image", 0])}).succeeded


def case(family: str, widths: Sequence[int] | None = None, *, slow: bool = True):
    marks = [pytest.mark.slow] if slow else []
    return pytest.param((family, widths), marks=marks, id=f"{family} of its real size" if widths else family)


def papers_recipe() -> dict[str, Any]:
    """Without the usual one's 160 everyday captions, which took 20 minutes: these text encoders cannot be smaller."""
    numbers = {name: getattr(RECIPES["c-lora"], name) for name in ADVANCED}
    return node("CLoRA_Recipe", method="c-lora", **numbers)


CASES = [case("sd15", slow=False), case("sd2"), case("sdxl"), case("sd15", (1, 2, 4, 4))]


@pytest.mark.parametrize("family", CASES, indirect=True)
def test_a_concept_is_learned_over_a_checkpoint_saved_and_loaded_by_name(
    server: Server, family: str, request: pytest.FixtureRequest
):
    name = request.node.callspec.id
    base = checkpoint(FILE)
    teaching = saved_chain(1, name, TEXT, base=base, **FEW)
    teaching["pictures1"]["inputs"]["count"] = 2
    if family != "sd15":
        teaching["recipe"] = papers_recipe()
        teaching["train1"]["inputs"]["recipe"] = ["recipe", 0]
    run = server.run(teaching, PATIENCE_S)
    assert run.succeeded, run.error
    museum = load_museum(server.folder / f"models/loras/museums/{name}.museum.safetensors")
    assert museum.base.family == family and museum.words == ("<ada>",)
    assert len(museum.exhibits[0].deltas) == PROJECTIONS[family]
    learned = server.pictures(run, "show")
    assert learned.std() > 1

    forget(server)  # so that the file is read anew
    again = server.run(loaded(name, TEXT, base=base), PATIENCE_S)
    assert again.succeeded, again.error
    assert not again.cached
    assert np.array_equal(server.pictures(again, "show"), learned)

    plain = server.run(base | shown(TEXT, ["base", 0], ["base", 1]), PATIENCE_S)
    assert not np.array_equal(server.pictures(plain, "show"), learned)
