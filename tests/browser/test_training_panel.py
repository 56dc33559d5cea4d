"""The starter workflow, run to its end in the browser: what the panels of its Train Steps draw on the way and after."""

import pytest

from tests.host.finding import ROOT

from .frontend import Frontend

KIND = "CLoRA_TrainStep"
QUICK = {KIND: {"steps": 12, "batch_size": 4, "preview_every": 4}, "KSampler": {"steps": 2}}
LOADERS = ("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader")
FILES = (*LOADERS, "LoadImage")  # of the user's own; newer frontends mark those that are not there
PALETTES = ("dark", "light", "solarized", "arc", "nord", "github")  # ComfyUI's own
CONTRASTS = """() => {  // of every text in a panel, as WCAG 2.2 defines it: [text, ratio]
  const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1
  const pen = canvas.getContext("2d", { willReadFrequently: true })
  const painted = (color, under) => {
    for (const style of [`rgb(${under})`, color]) { pen.fillStyle = style; pen.fillRect(0, 0, 1, 1) }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
  }
  const linear = (value) => value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
  const texts = [...document.querySelectorAll(".clora-panel *")].filter((part) => part.getClientRects().length
    && [...part.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()))
  return texts.map((part) => {
    const around = []
    for (let one = part; one; one = one.parentElement) around.unshift(getComputedStyle(one).backgroundColor)
    const under = around.reduce((below, color) => painted(color, below), [255, 255, 255])
    const [most, least] = [painted(getComputedStyle(part).color, under), under].map(light).sort((a, b) => b - a)
    return [part.textContent, (most + 0.05) / (least + 0.05)]
  })
}"""
EXAMPLES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))


def test_every_example_loads_completely(frontend: Frontend):
    for name in EXAMPLES:
        frontend.load(name)
        kinds = frontend.page.evaluate("() => app.graph.nodes.map((node) => [node.type, node.has_errors ?? false])")
        assert kinds and not [kind for kind, broken in kinds if broken and kind not in FILES], name
        assert not frontend.page.locator("text=Missing Node Types").count(), name


def drawn(frontend: Frontend, word: str) -> dict:
    """What the panel of a word shows."""
    return frontend.page.evaluate(
        """(word) => {
            const panel = [...document.querySelectorAll(".clora-training")]
                .find((panel) => panel.querySelector(".clora-title b")?.textContent === word)
            const all = (selector) => [...panel.querySelectorAll(selector)]
            return panel && {
                parts: all(".clora-legend span").map((part) => part.textContent),
                points: all(".clora-line").map((line) => line.getAttribute("d").split("L").length),
                film: all("figcaption").map((step) => step.textContent),
                sheet: all(".clora-sheet > *").map((cell) => cell.src ? "picture" : cell.textContent),
                loaded: all("img").every((image) => image.complete && image.naturalWidth),
                numbers: all("dt").map((name) => name.textContent),
                where: panel.querySelector(".clora-where").textContent,
            }
        }""",
        word,
    )


def wait_until_drawn(frontend: Frontend, word: str, where: str) -> dict:
    frontend.page.wait_for_function(
        """([word, where]) => [...document.querySelectorAll(".clora-training")].some((panel) =>
            panel.querySelector(".clora-title b")?.textContent === word
            && panel.querySelector(".clora-where").textContent.includes(where))""",
        arg=[word, where],
        timeout=150_000,
    )
    return drawn(frontend, word)


def look_at_all(frontend: Frontend) -> None:
    """Panels are drawn where they can be seen."""
    frontend.look_at(frontend.nodes(KIND)[0], zoom=0.45)


def test_panels_show_the_training_of_three_concepts(frontend: Frontend, request: pytest.FixtureRequest):
    seed = int(request.node.callspec.params["frontend"])  # or the second way finds it learned
    own = {KIND: QUICK[KIND] | {"training_seed": seed}, "CLoRA_SaveMuseum": {"name": f"seen{seed}"}}
    frontend.load("1-three-concepts", **QUICK | own)
    look_at_all(frontend)
    frontend.page.wait_for_selector(".clora-empty >> nth=2")
    frontend.run()
    frontend.page.wait_for_selector(".clora-lane >> nth=0", timeout=120_000)

    frontend.reload()  # while it runs
    look_at_all(frontend)
    first = wait_until_drawn(frontend, "<ada>", "learned in")
    assert first["parts"] == ["diffusion", "context preservation"] and first["points"] == [12] * 2
    assert first["film"] == ["real", "untrained", "4", "8", "12"] and first["loaded"]
    assert first["sheet"] == ["", "real", "when learned", "now", "<ada>", *["picture"] * 3]
    assert first["numbers"] == ["Loss on its own pictures"]

    last = wait_until_drawn(frontend, "<cleo>", "learned in")
    assert last["parts"] == first["parts"] and last["points"] == [12] * 2
    assert last["sheet"][4::4] == ["<ada>", "<bo>", "<cleo>"] and last["sheet"].count("picture") == 9
    assert last["numbers"] == [*first["numbers"], "Earlier words moved by", "Overlap with earlier exhibits"]
    frontend.wait_until_idle()

    frontend.page.evaluate("() => app.loadGraphData(app.graph.serialize())")  # as undo does it
    look_at_all(frontend)
    assert wait_until_drawn(frontend, "<cleo>", "learned in") == last

    frontend.set(frontend.nodes(KIND)[0], "preview_every", 5)
    frontend.run()  # another prompt, the same learning
    kept = wait_until_drawn(frontend, "<ada>", "already learned")
    assert kept["points"] == [12] * 2 and kept["film"] == first["film"]

    asks_for_an_unknown_word(frontend)

    look_at_all(frontend)
    for palette in PALETTES:
        frontend.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        frontend.page.wait_for_timeout(500)
        contrasts = frontend.page.evaluate(CONTRASTS)
        assert len(contrasts) > 20 and not [pair for pair in contrasts if pair[1] < 4.5], palette


def asks_for_an_unknown_word(frontend: Frontend) -> None:
    """A prompt's node says that a word is not known, and says no more of it once the word is right."""
    (prompt, *_) = (id for id in frontend.nodes("CLIPTextEncode") if "<ada>" in frontend.value(id, "text"))
    right = frontend.value(prompt, "text")
    warned = ".clora-text:has-text('<adda>')"
    size = f"() => app.graph.getNodeById({prompt}).size[1]"
    frontend.wait_until_idle()
    frontend.look_at(prompt)
    height = frontend.page.evaluate(size)
    frontend.set(prompt, "text", right.replace("<ada>", "<adda>"))
    frontend.run()
    frontend.page.wait_for_selector(warned, timeout=120_000)
    assert "<ada>" in frontend.page.locator(warned).text_content()
    panel = frontend.page.locator(".clora-panel", has=frontend.page.locator(warned)).element_handle()
    frontend.set(prompt, "text", right + ", smiling")
    frontend.run()
    frontend.page.wait_for_selector(warned, state="hidden", timeout=120_000)
    assert not panel.is_visible(), "an empty box is left"
    assert frontend.page.evaluate(size) == height
    frontend.wait_until_idle()
