"""Words that look like HTML stay readable text wherever the pack shows them.

Tested in the installed frontend, and in the one in the folder COMFYUI_FRONTEND if that is set: how frontends treat the
text on a node has changed three times.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.host.prompts import chain, node
from tests.host.server import Server

from .conftest import HOST
from .frontend import Frontend

RUN = "window.hacked=1"
EVIL, TOM = f"<img/src/onerror={RUN}>", "<my-__LNK0__>"
TEMPLATE = f"a photo of {{word}} &lt; <img src=x onerror={RUN}>"
JOINER = "\u2060"
STRANGER = f"<svg/onload={RUN}>"  # a word that nobody learned
FILE = f"<img src=x onerror={RUN}>.png"
TURNED = "\u202egpj"
OTHER = os.environ.get("COMFYUI_FRONTEND")
# Newer frontends take the text off the node when the run ends.
WATCH = """() => {
    window.seen ??= new Set()
    const look = (changes) => changes.forEach(({ target }) => seen.add(target.textContent))
    new MutationObserver(look).observe(document.body, { childList: true, characterData: true, subtree: true })
}"""


@pytest.fixture(scope="module", params=["installed", "other"])
def opened(browser: object, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A server of its own and its page."""
    if HOST is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH, or link this repository into its custom_nodes")
    if request.param == "other" and not OTHER:
        pytest.skip("no other frontend: set COMFYUI_FRONTEND to its folder")
    options = ["--front-end-root", str(OTHER)] if request.param == "other" else []
    server = Server(HOST, tmp_path_factory.mktemp("comfyui"), *options)
    pictures = server.folder / "input" / "hostile"
    pictures.mkdir()
    Image.new("RGB", (64, 64)).save(pictures / "good.png")
    for name in (FILE, f"b{TURNED}.png"):
        (pictures / name).write_bytes(b"no picture")
    try:
        server.start()
        with Frontend.opened(browser, server.address, size=(1900, 1200)) as frontend:  # type: ignore[arg-type]
            yield server, frontend
    finally:
        server.stop()


def run(frontend: Frontend, edits: str) -> None:
    """Everything that says something: learn a word, edit, save, look at it."""
    prompt = chain(1, steps=2, preview_every=1)
    prompt["concept1"]["inputs"] |= {"word": EVIL, "template": TEMPLATE}
    prompt["edit"] = node("CLoRA_EditMuseum", museum=["train1", 2], edits=edits)
    prompt["save"] = node("CLoRA_SaveMuseum", museum=["edit", 0], name="hostile", overwrite=True)
    numbers = {"pictures": 1, "everyday": 1, "sampling_steps": 1, "report_seed": 0}
    links = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "museum": ["edit", 0]}
    prompt["report"] = node("CLoRA_MuseumReport", **links, **numbers, name="hostile")
    prompt["load"] = node(
        "CLoRA_LoadMuseum", **dict(list(links.items())[:2]), museum_name="", exhibits="", strength=1.0
    )
    prompt["pictures"] = node("CLoRA_LoadPictures", folder="hostile", files="")
    prompt["text"] = node("CLIPTextEncode", text=f"a {STRANGER} beside {EVIL}", clip=["train1", 1])
    prompt["seen"] = node("PreviewAny", source=["text", 0])
    names = {name: str(number) for number, name in enumerate(prompt, 1)}
    for each in prompt.values():
        for key, value in each["inputs"].items():
            if isinstance(value, list):
                each["inputs"][key] = [names[value[0]], value[1]]
    renamed = {names[name]: each for name, each in prompt.items()}
    frontend.page.evaluate("(prompt) => app.loadApiJson(prompt, 'hostile.json')", renamed)
    frontend.page.evaluate(WATCH)
    frontend.page.evaluate("() => { app.canvas.ds.scale = 0.4; app.canvas.ds.offset = [100, 200] }")
    frontend.run()
    frontend.page.wait_for_timeout(1000)
    frontend.wait_until_idle()


def wait_for_text(frontend: Frontend, text: str) -> None:
    """Until it stands on the page as it is, but for characters that nobody sees, or has stood there during the run."""
    frontend.page.wait_for_function(
        "([text, joiner]) => [...seen].some((one) => one.replaceAll(joiner, '').includes(text))",
        arg=[text, JOINER],
        timeout=10_000,
    )


def hacked(frontend: Frontend) -> bool:
    frontend.page.wait_for_timeout(500)
    return frontend.page.evaluate("() => 'hacked' in window")


def test_texts_of_nodes_are_plain_text(opened: tuple[Server, Frontend]):
    _, frontend = opened
    run(frontend, f"rename {EVIL} {TOM}\nrename {TOM} {EVIL}")
    wait_for_text(frontend, f"'{EVIL}' is now '{TOM}'.")
    wait_for_text(frontend, f": {EVIL}")
    wait_for_text(frontend, f"The museum does not show {STRANGER}.")
    wait_for_text(frontend, FILE)
    wait_for_text(frontend, r"b\u202egpj.png")
    assert not frontend.page.evaluate("(turned) => [...seen].some((one) => one.includes(turned))", TURNED)
    frontend.page.wait_for_function(
        "(word) => [...document.querySelectorAll('.clora-title b')].some((title) => title.textContent === word)",
        arg=EVIL,
    )
    assert not hacked(frontend)


def test_museum_panel_shows_plain_text(opened: tuple[Server, Frontend]):
    _, frontend = opened
    (panel,) = frontend.nodes("CLoRA_LoadMuseum")
    frontend.set(panel, "museum_name", "hostile.museum.safetensors")
    frontend.look_at(panel)
    row = frontend.page.locator(".clora-museum .clora-word").first
    assert row.locator("b").inner_text() == EVIL
    row.hover()
    assert TEMPLATE.replace("{word}", EVIL) in frontend.page.locator(".clora-card").inner_text()
    assert not hacked(frontend)


def test_errors_are_plain_text(opened: tuple[Server, Frontend]):
    _, frontend = opened
    run(frontend, f"paint {EVIL}")
    if (details := frontend.page.get_by_text("View details")).count():  # newer frontends show it only then
        details.click()
    wait_for_text(frontend, f"'paint {EVIL}' is not a valid edit.")
    assert not hacked(frontend)


def test_report_page_shows_plain_text(opened: tuple[Server, Frontend]):
    server, frontend = opened
    (name,) = (path.name for path in (server.folder / "output").glob("hostile*.html"))
    page = frontend.page.context.new_page()
    page.goto(Path(server.folder, "output", name).as_uri())
    assert EVIL in page.inner_text("h3") and not page.evaluate("() => 'hacked' in window")
    page.close()
