"""A concept learned over a checkpoint file by the stock loader, in a ComfyUI started from its own main.py."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from clora_pack.clora_core.museum.file import load_museum

from .checkpoints import write_checkpoint
from .conftest import HOST
from .models import CLIP
from .prompts import checkpoint, loaded, node, saved_chain, shown
from .server import Server

PROJECTIONS = {"sd15": 32, "sd2": 32, "sdxl": 140}  # as many as the published models have
FEW = {"steps": 2, "batch_size": 1, "learning_rate": 2e-2}
PATIENCE_S = 1200
FILE = "random.safetensors"
SMALL_TEXT_ENCODERS = f"""
import comfy.clip_model
whole = comfy.clip_model.CLIPTextModel.__init__
def few(self, config_dict, *others, **options):
    whole(self, config_dict | {dict(CLIP)}, *others, **options)
comfy.clip_model.CLIPTextModel.__init__ = few
NODE_CLASS_MAPPINGS = {{}}
"""
TEXT = "a photo of <ada>, (<ada>:1.2)!"


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI whose text encoders have few layers, as the checkpoints do: its stock loader has fixed sizes."""
    assert HOST is not None
    server = Server(HOST, tmp_path_factory.mktemp("small"))
    (server.folder / "custom_nodes/small_text_encoders.py").write_text(SMALL_TEXT_ENCODERS)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[str, Server]]:
    """The family of a checkpoint, and a server that has it. It takes gigabytes, so it goes when the test ends."""
    family, widths = request.param
    server = request.getfixturevalue("server" if widths else "small_server")
    path = server.folder / "models/checkpoints" / FILE
    write_checkpoint(family, path, widths)
    yield family, server
    path.unlink()
    forget(server)


def forget(server: Server) -> None:
    """Let ComfyUI give up all that it loaded and computed. It does so before its next but one prompt at the latest."""
    server.post("/free", {"unload_models": True, "free_memory": True})
    image = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    assert server.run({"image": image, "show": node("PreviewImage", images=["image", 0])}).succeeded


def case(family: str, widths: Sequence[int] | None = None):
    marks = [pytest.mark.slow] if widths else []
    return pytest.param((family, widths), marks=marks, id=f"{family} of its real size" if widths else family)


CASES = [case("sd15"), case("sd2"), case("sdxl"), case("sd15", (1, 2, 4, 4))]


@pytest.mark.parametrize("taken", CASES, indirect=True)
def test_concept_over_a_checkpoint_is_learned_saved_and_loaded(
    taken: tuple[str, Server], request: pytest.FixtureRequest
):
    family, server = taken
    name = request.node.callspec.id
    base = checkpoint(FILE)
    teaching = saved_chain(1, name, TEXT, base=base, **FEW)
    teaching["pictures1"]["inputs"]["count"] = 2
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
